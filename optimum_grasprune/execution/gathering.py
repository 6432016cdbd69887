"""The pass over sequences that statistics are gathered in, and the state that it goes on from.

Shape suffixes: N sequences, B batch, S sequence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..progress import bar
from ..statistics import Collector
from .run_state import Content, Piece
from .state_file import Standing


class GatheringCourse:
    """The course of one pass.

    collectors: what takes sequences in.  piece: where their state is kept; None to keep none.  device: where the model
    is.
    """

    def __init__(self, collectors: Sequence[Collector[Any]], piece: Piece | None, device: torch.device) -> None:
        self.collectors, self.device = collectors, device
        self.piece = piece if all(each.kept() is not None for each in collectors) else None

    def sequences(self, tokens_NS: Tensor, label: str, at_once: int = 1) -> Iterator[Tensor]:
        """The sequences that are still to be taken in, shape (B, S) with B up to `at_once`, behind a bar of all.

        The state is kept after each such batch.
        """
        if not len(tokens_NS):
            return
        done = self._take_up()
        with bar(len(tokens_NS), label, "sequence") as stage:
            stage.update(done)
            unread_NS = tokens_NS[done:]
            for tokens_BS in unread_NS.split(at_once) if len(unread_NS) else ():  # parts of nothing are one, and empty
                yield tokens_BS
                done += len(tokens_BS)
                stage.update(len(tokens_BS))
                if self.piece is not None and done < len(tokens_NS):
                    self.piece.step_done(partial(self._content, self.piece, done))
        if self.piece is not None:
            self.piece.finish(*self._content(self.piece, len(tokens_NS)))

    def _take_up(self) -> int:
        """Sequences that were taken in before."""
        if self.piece is None or (kept := self.piece.kept()) is None:
            return 0
        standing, tensors = kept
        for number, collector in enumerate(self.collectors):
            own = f"{number}/"
            of_collector = {name.removeprefix(own): each for name, each in tensors.items() if name.startswith(own)}
            collector.take_up(of_collector, self.device)
        return standing.step

    def _content(self, piece: Piece, step: int) -> Content:
        parts = {f"{number}/": collector.kept() or {} for number, collector in enumerate(self.collectors)}
        tensors = {own + name: tensor for own, kept in parts.items() for name, tensor in kept.items()}
        return Standing(of=piece.of, step=step), tensors
