"""The state of a run that several processes do together: the first one keeps it, and what it knows all of them know."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from types import FrameType

import torch
from pydantic import JsonValue
from torch import Tensor

from .peers import Peers
from .run_state import Content, Piece, RunState
from .state_file import RunIndex, Standing

_STANDING = "standing"


class SharedState(RunState):
    """The state of a run of several processes; arguments as of `RunState`.

    Nothing but the first process looks at the folder. All go the same way through the run, so that what one of them
    knows at a place the others know there too.
    """

    def __init__(
        self, folder: str | os.PathLike[str], peers: Peers, *, resume: bool = True, every: float | None = None
    ) -> None:
        super().__init__(folder, resume=resume, every=every)
        self.peers = peers
        # What launchers stop processes by, where it is another one that was asked.
        self._signal: int = signal.SIGTERM
        self._waits = False

    def begin(self, of: Mapping[str, JsonValue], contents: Callable[[], Mapping[str, JsonValue]]) -> None:
        """See `RunState.begin`."""
        if self.peers.is_first:
            super().begin(of, contents)
        index = RunIndex.from_dict(json.loads(self.peers.text_of_first(self._known_to_all)), self.folder)
        if not self.peers.is_first:
            self._results = {result.place: result for result in index.results}
            self.outputs, self._next = index.outputs, 0

    def found(self) -> RunIndex | None:
        """See `RunState.found`; only the first process looks."""
        return super().found() if self.peers.is_first else None

    def kept(self, piece: Piece) -> Content | None:
        """See `RunState.kept`."""

        def read() -> dict[str, Tensor] | None:
            found = super(SharedState, self).kept(piece)
            return None if found is None else {**found[1], _STANDING: _as_bytes(found[0])}

        tensors = self.peers.of_first(read)
        if tensors is None:
            return None
        standing = Standing.from_dict(json.loads(bytes(tensors[_STANDING].tolist())), piece.file)
        return standing, {name: tensor for name, tensor in tensors.items() if name != _STANDING}

    def clock(self) -> float:
        """See `RunState.clock`; the first process's, so that all run out of time at once."""

        def now() -> float:
            return float(self.peers.text_of_first(lambda: repr(time.monotonic() + self._offset)))

        value = self.number("clock", "", now)
        self._offset = value - time.monotonic()
        return value

    def write_when_due(self, piece: Piece | None = None, content: Callable[[], Content] | None = None) -> None:
        """See `RunState.write_when_due`: all stop after the step at which they agreed to, as every step asks them."""
        if self.peers.stops or (self._waits and piece is None):
            self._asked = self._signal
        if self.peers.is_first or self._asked is not None:
            super().write_when_due(piece, content)
        else:
            self._in_steps = piece is not None
            self._unwritten.clear()

    def write(self, under_way: Mapping[str, Content] | None = None) -> None:
        """See `RunState.write`; the first process alone does so."""
        if self.peers.is_first:
            super().write(under_way)

    def remove(self) -> None:
        """See `RunState.remove`; the first process alone does so."""
        if self.peers.is_first:
            super().remove()

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self.peers.is_ending:  # of which the others may just have been told by signals too
            return
        self._signal = number
        if not self._in_steps or self._waits:
            self._twice, self._asked = self._waits, number
            raise KeyboardInterrupt
        self._waits = True
        self.peers.stop()
        self._tell_that_it_stops()

    def _known_to_all(self) -> str:
        results = tuple(self._results[place] for place in sorted(self._results))
        return json.dumps(RunIndex(of={}, results=results, outputs=self.outputs).to_dict())


def _as_bytes(standing: Standing) -> Tensor:
    return torch.tensor(list(json.dumps(standing.to_dict()).encode()), dtype=torch.uint8, device="cpu")
