"""Processes that hold a claim, and whether they are still there."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from ..record import Stored

_ZOMBIE = -1


@dataclass(frozen=True, kw_only=True)
class Holder(Stored):
    """A process that holds a claim.

    system: what its process number is counted in: the start of a machine, and the namespace of a container.
    started: clock ticks from then to its own start, which tells it from a later process of the same number; None
    where the system tells neither.  since: when it made the claim, in UTC.
    """

    host: str
    system: str
    pid: int
    started: int | None
    since: str

    @classmethod
    def this_process(cls) -> Holder:
        """This one, now."""
        return cls(
            host=socket.gethostname(),
            system=_system(),
            pid=os.getpid(),
            started=start_of(os.getpid()),
            since=datetime.now(timezone.utc).isoformat(),
        )

    def runs(self) -> bool | None:
        """Whether the process is there; None where that cannot be seen from here."""
        if self.started is None or self.system != _system():
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except OSError:  # it is another user's
            pass
        return start_of(self.pid) in (self.started, None)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def _system() -> str:
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def start_of(pid: int) -> int | None:
    """When a process was started, in clock ticks; _ZOMBIE for a dead one, None where nothing is told of it."""
    try:
        state, *numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return _ZOMBIE if state in "ZX" else int(numbers[18])
    except (OSError, ValueError, IndexError):
        return None
