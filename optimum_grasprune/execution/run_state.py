"""What a run keeps of its work while it goes on, so that the same run started again goes on from there.

A run asks for the same work in the same order each time, so what was worked out is known by its place in that order.
Numbers stand in the index of the state's folder, tensors each in a file of its own; a long piece of work has its file
while it is under way.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import FrameType

from pydantic import JsonValue
from safetensors import SafetensorError
from torch import Tensor

from ..errors import CheckpointError, GraspruneWarning, ProcessEnded, Stopped
from ..writing import PARTIAL
from .state_file import INDEX_NAME, Result, RunIndex, Standing, read_standing, unreadable, write_standing

STATE_EVERY = 120.0
"""Seconds between two writes of the state: a run that takes less leaves none."""

_LARGEST_SHARE = 0.1
"""Of the time, at most, that goes into writing, where the state is so large that it takes long."""

_OWN_FILE = re.compile(r"\d{4,}-.*\.safetensors|" + re.escape(INDEX_NAME))
_OWN_PARTIAL = re.compile(rf"\.({_OWN_FILE.pattern})(\.[^/]+)?{re.escape(PARTIAL)}")

Content = tuple[Standing, Mapping[str, Tensor]]
"""What the file of a piece of work holds."""


class RunState:
    """The state of one run.

    folder: for the state alone; it is made when there is something to write.  resume: whether what is there is taken
    up, and not replaced.  every: seconds between two writes; None for two minutes, 0 to write after every step.
    outputs: as in `RunIndex`.
    """

    def __init__(self, folder: str | os.PathLike[str], *, resume: bool = True, every: float | None = None) -> None:
        self.folder, self.resume = Path(folder), resume
        self.every = STATE_EVERY if every is None else every
        self.outputs: tuple[str, ...] = ()
        self._of: Callable[[], dict[str, JsonValue]] = dict
        self._results: dict[int, Result] = {}
        self._unwritten: dict[str, Content] = {}
        self._obsolete: set[str] = set()
        self._next, self._offset = 0, 0.0
        self.on_disk = self._warned = False
        self._asked: int | None = None
        self._in_steps = self._twice = self._changed = False
        self._interval, self._last = self.every, time.monotonic()

    def begin(self, of: Mapping[str, JsonValue], contents: Callable[[], Mapping[str, JsonValue]]) -> None:
        """Take up what is there, if anything is; called when all is checked, before any work.

        of: what tells the run from others, by name.  contents: more of that, which takes a while to find, and is asked
        for only where a state is read or written, or the model is about to change (`identify`).
        Raises CheckpointError where the folder holds the state of another run, or something else.
        """
        self._of = cache(lambda: _as_json({**of, **contents()}))
        self._results, self._unwritten, self._obsolete, self._next = {}, {}, set(), 0
        index = self.found()
        if index is not None:
            self._check(index, _as_json(of), of)
            self._check(index, self._of(), {**index.of, **self._of()})
            self._results = {result.place: result for result in index.results}
            self.outputs, self.on_disk = index.outputs, True
        elif not self.resume:
            self.remove()
        self._last = time.monotonic()

    def identify(self) -> None:
        """Find out now what tells the run from others, after which what it works on may change."""
        self._of()

    def found(self) -> RunIndex | None:
        """What is there and will be taken up, if it is of this run; None where nothing is, or it will be replaced.

        Raises CheckpointError where it is damaged, or the folder holds something else.
        """
        if not os.path.exists(self.folder):
            return None
        if not self.folder.is_dir():
            raise CheckpointError(f"the folder {self.folder} for the state of the run is a file")
        strangers = sorted(each.name for each in self.folder.iterdir() if not _is_own(each))
        if strangers:
            raise CheckpointError(
                f"the folder {self.folder} holds something other than the state of a run: {strangers[0]}"
            )
        return RunIndex.found(self.folder) if self.resume else None

    def _check(self, index: RunIndex, of: Mapping[str, JsonValue], names: Iterable[str]) -> None:
        for name in names:
            if (found := index.of.get(name)) != (value := of.get(name)):
                raise CheckpointError(
                    f"{self.folder} holds the state of another run: its {name} is {found}, not {value}; "
                    "--resume no replaces it"
                )

    def number(self, what: str, of: str, work: Callable[[], float]) -> float:
        """What `work` comes to, or came to. what, of: as in `Result`."""
        place = self._take()
        known = self._known(place, what, of)
        if known is not None and known.value is not None:
            return known.value
        value = work()
        self._results[place] = Result(place=place, what=what, of=of, value=value)
        self._changed = True
        self.write_when_due()
        return value

    def piece(self, what: str, of: str, *, may_differ: bool = False) -> Piece:
        """A long piece of work, whose result is tensors. what, of: as in `Result`.

        may_differ: whether other work may be known at its place, which is then forgotten.
        """
        place = self._take()
        known = self._results.get(place)
        if may_differ and known is not None and (known.what, known.of) != (what, of):
            self._obsolete.add(self._results.pop(place).file_name)
        return Piece(self, place, what, of, finished=self._known(place, what, of) is not None)

    def clock(self) -> float:
        """Seconds that go on where they were when the run was stopped."""
        value = self.number("clock", "", lambda: time.monotonic() + self._offset)
        self._offset = value - time.monotonic()
        return value

    def _take(self) -> int:
        self._next += 1
        return self._next - 1

    def _known(self, place: int, what: str, of: str) -> Result | None:
        known = self._results.get(place)
        if known is not None and (known.what, known.of) != (what, of):
            raise unreadable(self.folder / INDEX_NAME, f"it has {known.what} at {place}, where {what} is asked for")
        return known

    def kept(self, piece: Piece) -> Content | None:
        """What was kept of a piece of work, on the CPU; None where nothing was."""
        if not self.on_disk:
            return None
        found = read_standing(piece.file)
        if piece.finished and (found is None or found[0].of != piece.of):
            raise unreadable(piece.file, "it is missing" if found is None else "it is of other work")
        return found if found is not None and found[0].of == piece.of else None

    def finish(self, piece: Piece, content: Content) -> None:
        """Keep what a piece of work came to; what was kept on the way to it goes."""
        for place in [place for place in self._results if place > piece.place]:
            self._obsolete.add(self._results.pop(place).file_name)
        for name in [name for name in self._unwritten if int(name.partition("-")[0]) > piece.place]:
            del self._unwritten[name]
        self._results[piece.place] = Result(place=piece.place, what=piece.what, of=piece.of)
        self._unwritten[piece.file.name] = content
        self._next, self._changed = piece.place + 1, True
        self.write_when_due()

    def write_when_due(self, piece: Piece | None = None, content: Callable[[], Content] | None = None) -> None:
        """Write the state if it is time, or if the run is asked to stop, which is done then.

        piece, content: what is under way.
        """
        self._in_steps = piece is not None
        if self._asked is None and time.monotonic() - self._last < self._interval:
            return
        self.write({} if piece is None or content is None else {piece.file.name: content()})
        if self._asked is not None:
            raise KeyboardInterrupt

    def write(self, under_way: Mapping[str, Content] | None = None) -> None:
        """Write all that is not written; a disk that is full, or the like, ends in a warning, and stops nothing."""
        begun = time.monotonic()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not self.on_disk:  # first what the files will be of
                self._clear()
                RunIndex(of=self._of()).write(self.folder)
                self.on_disk = True
            files = {**self._unwritten, **(under_way or {})}
            for name, (standing, tensors) in files.items():
                write_standing(self.folder / name, standing, tensors)
            results = tuple(self._results[place] for place in sorted(self._results))
            RunIndex(of=self._of(), results=results, outputs=self.outputs).write(self.folder)
            self._unwritten.clear()
            for name in self._obsolete - files.keys():
                (self.folder / name).unlink(missing_ok=True)
            self._obsolete.clear()
            self._changed = False
        except (OSError, SafetensorError, CheckpointError) as error:
            if not self._warned:
                line = f"the state of the run cannot be kept, which goes on without: {error}"
                warnings.warn(line, GraspruneWarning, stacklevel=2)
            self._warned = True
        self._last = time.monotonic()
        self._interval = max(self.every, (self._last - begun) / _LARGEST_SHARE) if self.every else 0.0

    def announce(self, output: str) -> None:
        """Keep that one of several checkpoints is being written, so that it is known for this run's."""
        if output not in self.outputs:
            self.outputs = (*self.outputs, output)
            self.write()

    def remove(self) -> None:
        """Remove the folder, when the work is done; what is not of the state stays."""
        self._clear()
        self.on_disk = False
        with suppress(OSError):
            self.folder.rmdir()

    def _clear(self) -> None:
        if os.path.isdir(self.folder):
            for path in filter(_is_own, self.folder.iterdir()):
                path.unlink(missing_ok=True)

    @contextmanager
    def stoppable(self) -> Iterator[None]:
        """Inside the block SIGINT and SIGTERM have the state written, and then raise `Stopped`.

        In the midst of a long piece of work that is after the step; a second signal ends it at once, with nothing
        written. Signals that are ignored stay so.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
        for each in [each for each, handler in before.items() if handler != signal.SIG_IGN]:
            signal.signal(each, self._stop)
        try:
            yield
        except ProcessEnded as ended:
            going_on = self._going_on()
            raise ProcessEnded(
                f"{ended}; {going_on}" if going_on and ended.code != 2 else str(ended), ended.code
            ) from None
        except KeyboardInterrupt:
            raise Stopped("; ".join(filter(None, ["interrupted", self._going_on()])), self._code) from None
        finally:
            for each, handler in before.items():
                signal.signal(each, signal.SIG_DFL if handler is None else handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._twice, self._asked = self._asked is not None, number
        if self._twice or not self._in_steps:
            raise KeyboardInterrupt
        self._tell_that_it_stops()

    @staticmethod
    def _tell_that_it_stops() -> None:
        if sys.stderr.isatty():  # os.write, since the signal may have come amidst a print
            os.write(2, b"\nstops after this step, when its state is written; once more stops at once\n")

    @property
    def _code(self) -> int:
        return 128 + (self._asked or signal.SIGINT)

    def _going_on(self) -> str:
        """How the run goes on, once what it came to is written; nothing where there is nothing to go on from."""
        if self._changed and not self._twice:
            self.write()
        if not self.on_disk:
            return ""
        return f"the same command goes on from there, --resume no starts anew (state in {self.folder})"


class Piece:
    """A long piece of work. place, what, of: as in `Result`.  finished: whether it was, in the run that is taken up."""

    def __init__(self, state: RunState, place: int, what: str, of: str, *, finished: bool) -> None:
        self.state, self.place, self.what, self.of, self.finished = state, place, what, of, finished
        self.file = state.folder / Result(place=place, what=what, of=of).file_name

    def kept(self) -> Content | None:
        """What was kept of it, on the CPU; None where nothing was."""
        return self.state.kept(self)

    def step_done(self, content: Callable[[], Content]) -> None:
        """Called after each step: keeps its state now and then. content: that state."""
        self.state.write_when_due(self, content)

    def finish(self, standing: Standing, tensors: Mapping[str, Tensor]) -> None:
        """Keep what it came to."""
        if not self.finished:
            self.state.finish(self, (standing, tensors))


def _as_json(values: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    return json.loads(json.dumps(values))


def _is_own(path: Path) -> bool:
    return any(pattern.fullmatch(path.name) for pattern in (_OWN_FILE, _OWN_PARTIAL))
