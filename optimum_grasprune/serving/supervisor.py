"""Runs one command and ends it, with all that it started, as soon as standard input closes.

    python supervisor.py COMMAND [ARGUMENT …]

Whoever starts this keeps the other end of standard input open and writes nothing. The kernel closes that end when its
owner ends, also by SIGKILL, where no `finally` runs: so no server outlives the benchmark that started it. This process
has a session of its own, so that what is sent to the benchmark's terminal or process group does not reach it.
The exit code is the command's; 128 + N when signal N ended it.

Only the standard library, and no import from the package: it is started as a file and has to be up at once.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from typing import Any

_TERMINATE_SECONDS = 10
_POLL_SECONDS = 0.1
# From <linux/prctl.h>
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


class _Command:
    """The command as the leader of its own process group. code: how it ended; None while it runs."""

    def __init__(self, command: list[str]) -> None:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=lambda: _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM),  # should this process itself be killed
        )
        self.group = process.pid
        self.code: int | None = None

    def reap(self) -> None:
        """Collect the processes that have ended, orphans of the command among them."""
        try:
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if pid == self.group:
                    code = os.waitstatus_to_exitcode(status)
                    self.code = code if code >= 0 else 128 - code
        except ChildProcessError:
            return

    def end(self) -> None:
        """Ask the whole group to end, then make it."""
        for sign, seconds in ((signal.SIGTERM, _TERMINATE_SECONDS), (signal.SIGKILL, _TERMINATE_SECONDS)):
            if not self._signal(sign):
                return
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                self.reap()
                if not self._signal(0):
                    return
                time.sleep(_POLL_SECONDS)

    def _signal(self, sign: int) -> bool:
        """Whether any process of the group was there to get it."""
        try:
            os.killpg(self.group, sign)
        except (ProcessLookupError, PermissionError):  # macOS says the latter of a group of zombies
            return False
        return True


def main(command: list[str]) -> int:
    """Run the command until it ends or standard input closes; its exit code."""
    # Orphans become children of this process rather than of init: they can be waited for, whatever init does.
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    for sign in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(sign, lambda number, _: sys.exit(128 + number))
    running = _Command(command)
    try:
        while running.code is None and not _closed(sys.stdin.fileno()):
            running.reap()
    finally:
        running.end()
    return 128 + signal.SIGTERM if running.code is None else running.code


def _closed(descriptor: int) -> bool:
    """Whether the other end was closed, found out within the polling interval."""
    readable, _, _ = select.select([descriptor], [], [], _POLL_SECONDS)
    return bool(readable) and not os.read(descriptor, 1)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        libc: Any = ctypes.CDLL(None)
        libc.prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
