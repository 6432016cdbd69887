"""The pass over sequences that statistics are gathered in, and the state that it goes on from.

Shape suffixes: N sequences, B batch, S sequence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..progress import bar
from ..statistics import Collector
from .peers import Peers
from .run_state import Content, Piece
from .state_file import Standing

Taken = TypeVar("Taken")


class GatheringCourse:
    """The course of one pass.

    collectors: what takes sequences in.  piece: where their state is kept; None to keep none.  device: where the model
    is.  peers: who takes a share of the sequences, if all that is gathered can be put together.  in_step: whether all
    of them have to make as many passes.
    """

    def __init__(
        self,
        collectors: Sequence[Collector[Any]],
        piece: Piece | None,
        device: torch.device,
        peers: Peers,
        *,
        in_step: bool = False,
    ) -> None:
        self.collectors, self.device, self.peers = collectors, device, peers
        self._in_step, self._counts = in_step, True
        self._shared = peers.count > 1 and all(_can_be_merged(each) for each in collectors)
        can_be_kept = all(each.kept() is not None for each in collectors) and (self._shared or peers.count == 1)
        self.piece = piece if can_be_kept else None

    def sequences(self, tokens_NS: Tensor, label: str, at_once: int = 1) -> Iterator[Tensor]:
        """The sequences that are still to be taken in, shape (B, S) with B up to `at_once`, behind a bar of all.

        The state is kept after each such batch. Where peers share them those of this process, and the state is kept
        when all have been taken in.
        """
        if not len(tokens_NS):
            return
        done = self._take_up()
        if self._shared:
            if not done:
                mine_NS = tokens_NS[self.peers.rank :: self.peers.count]
                passes = -(-len(mine_NS) // at_once)
                with bar(len(mine_NS), label, "sequence") as stage:
                    for tokens_BS in mine_NS.split(at_once) if passes else ():
                        yield tokens_BS
                        stage.update(len(tokens_BS))
                most = -(-len(tokens_NS[:: self.peers.count]) // at_once)
                self._counts = False
                for _ in range(most - passes if self._in_step else 0):
                    yield tokens_NS[:1]
                self._merge(len(tokens_NS))
            return
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

    def taking_in(self, collectors: Sequence[Taken]) -> Sequence[Taken]:
        """Those of the collectors that the pass under way is for: none, where it is made for the others' sake."""
        return collectors if self._counts else ()

    def _merge(self, count: int) -> None:
        """Have every process know what all of them have taken in. count: of sequences."""
        of_all = self.peers.of_all(self._tensors())
        for number, collector in enumerate(self.collectors):
            merged = collector.merged([_own(number, tensors) for tensors in of_all])
            collector.take_up(merged or {}, self.device)
        if self.piece is not None:
            self.piece.finish(*self._content(self.piece, count))

    def _take_up(self) -> int:
        """Sequences that were taken in before."""
        if self.piece is None or (kept := self.piece.kept()) is None:
            return 0
        standing, tensors = kept
        for number, collector in enumerate(self.collectors):
            collector.take_up(_own(number, tensors), self.device)
        return standing.step

    def _content(self, piece: Piece, step: int) -> Content:
        return Standing(of=piece.of, step=step), self._tensors()

    def _tensors(self) -> dict[str, Tensor]:
        parts = {f"{number}/": collector.kept() or {} for number, collector in enumerate(self.collectors)}
        return {own + name: tensor for own, kept in parts.items() for name, tensor in kept.items()}


def _own(number: int, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What one collector has kept, of the tensors of all."""
    own = f"{number}/"
    return {name.removeprefix(own): each for name, each in tensors.items() if name.startswith(own)}


def _can_be_merged(collector: Collector[Any]) -> bool:
    kept = collector.kept()
    return kept is not None and collector.merged([kept]) is not None
