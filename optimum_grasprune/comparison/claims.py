"""Claims on files that several processes could make, so that each is made by one of them, on whatever machine.

A claim is a hidden file beside the one it is for. It is made so that one process succeeds and all others fail
(O_CREAT | O_EXCL, which NFS has too), says who holds it, and is touched while it is held. It goes when its holder is
done; of a holder that was killed it stays, and whoever comes next sees that and takes its place.

Where two processes hold the same claim for all that (one was stopped for long on another machine, and goes on), work is
done twice, and nothing is damaged: files are replaced at once, and what comes out is the same.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from typing_extensions import Self

from ..errors import CheckpointError, Stopped
from ..record import read_json
from ..writing import partial_of
from .holders import Holder

BEAT = 30.0
"""Seconds between two touches of a claim that is held."""
SILENCE = 600.0
"""Seconds without one after which a holder on another machine counts as dead. Network file systems may show a touch
a minute late."""
LOOK = 1.0
"""Seconds between two looks at a claim that is waited for."""


class Claim:
    """A claim that this process holds, from `take` to the end of a `with` block.

    path: its file.  holder: what stands in it.  file: its open file, which is touched whatever stands at `path` now.
    """

    def __init__(self, path: Path, holder: Holder, file: int) -> None:
        self.path, self.holder, self._file = path, holder, file
        self._released = threading.Event()
        self._beats = threading.Thread(target=self._beat, name="claim", daemon=True)
        self._beats.start()

    @classmethod
    def take(cls, target: Path) -> Self | None:
        """Claim a file; None where a process that may be alive has done so. CheckpointError where that cannot be."""
        path, holder = claim_on(target), Holder.this_process()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            while True:
                with suppress(FileExistsError):
                    return cls(path, holder, _made(path, json.dumps(holder.to_dict()) + "\n"))
                if not cleared(target):
                    return None
        except OSError as error:
            raise CheckpointError(f"{path} cannot be written: {error.strerror}") from None

    def _beat(self) -> None:
        while not self._released.wait(BEAT):
            with suppress(OSError):  # a server that is away for a while
                os.utime(self._file)

    def release(self) -> None:
        """Let go of it; another's, who took the place of this process meanwhile, stays."""
        self._released.set()
        self._beats.join()
        os.close(self._file)
        if holder_of(self.path) == self.holder:
            self.path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


def _made(path: Path, content: str) -> int:
    """A new file with this content, open; FileExistsError where there is one, and any other OSError."""
    file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        os.write(file, content.encode())
    except OSError:
        os.close(file)
        path.unlink()
        raise
    return file


def claim_on(target: Path) -> Path:
    """The file of a claim. It lies in the folder of what it is for: who makes it there sees what is new in there."""
    return target.with_name(f".{target.name}.claim")


def claimant(target: Path) -> Holder | None:
    """Who has claimed a file, and may be alive; None where nobody has."""
    path = claim_on(target)
    return None if _is_left(path) else holder_of(path)


def holder_of(path: Path) -> Holder | None:
    """What stands in a claim; None where it is not there, or not written to its end."""
    try:
        return Holder.from_dict(read_json(path), path)
    except (OSError, CheckpointError):
        return None


def cleared(target: Path) -> bool:
    """Remove the claim on a file if nobody holds it, and what a killed holder began to write; whether it is away.

    Of several processes that see that a claim is left, the one removes it that has claimed the claim: another that
    comes late would remove what the first one has made in its place.
    """
    path = claim_on(target)
    if not path.exists():
        return True
    if not _is_left(path) or (own := Claim.take(path)) is None:
        return False
    with own:
        if not _is_left(path):
            return False
        if (holder := holder_of(path)) is not None:
            partial_of(target, holder.host, holder.pid).unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    return True


def _is_left(path: Path) -> bool:
    """Whether nobody holds a claim: it is not there, its process is gone, or nobody has touched it for long."""
    try:
        touched = path.stat().st_mtime
    except FileNotFoundError:
        return True
    holder = holder_of(path)
    runs = None if holder is None else holder.runs()
    if runs is not None:
        return not runs
    with tempfile.TemporaryFile(dir=path.parent) as now:  # the file system's clock, which may be another machine's
        return os.fstat(now.fileno()).st_mtime - touched > SILENCE


@contextmanager
def turn(target: Path, *, done: Callable[[], bool], wait: Callable[[Holder], None]) -> Iterator[None]:
    """Hold the claim on a file inside the block, or enter it when another process has made the file.

    done: whether it is made.  wait: called once, with who is waited for, where that is known.
    """
    told = False
    while not done():
        if (claim := Claim.take(target)) is not None:
            with claim:
                yield
            return
        if not told and (holder := claimant(target)) is not None:
            wait(holder)
            told = True
        time.sleep(LOOK)
    yield


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Inside the block SIGTERM, as Slurm sends it, raises `Stopped`, so that claims are let go of on the way out."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped("interrupted; the same command goes on with the cells that are not finished", 128 + number)
