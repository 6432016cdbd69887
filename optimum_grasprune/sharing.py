"""What a run through several keep ratios does once for all of them, and hands on from each to the next smaller one.

Shape suffixes: N sequences, S sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor

from .execution import RememberedTeacher, Runner
from .record import Judgement, TrainedBefore
from .units import PruningPlan

Result = TypeVar("Result")

Numbers = Mapping[str, Tensor]
"""What a stage learnt, by names of its own, for all units or features of the dense model: 0 for those that were not
in the model that it was learnt on."""

LONGER = 3.0
"""Length of a training that several ratios share, as a multiple of one ratio's own."""


@dataclass(frozen=True)
class Leg:
    """One ratio's part of a training that several ratios share.

    begin, end: shares of the whole training that lie behind it at first and at last, between 0 and 1.
    start: what was learnt at the next larger ratio; empty where there is none.
    """

    begin: float
    end: float
    start: Numbers = field(default_factory=dict)

    def sequences(self, tokens_NS: Tensor, epochs: int) -> Tensor:
        """Those of its steps, at least one: all legs together go `LONGER` times as often through the sequences.

        tokens_NS: what one ratio by itself is trained on, `epochs` times; shape (N, S), int64.
        """
        steps = LONGER * epochs * len(tokens_NS)
        first = round(self.begin * steps)
        last = max(first + 1, round(self.end * steps))
        return tokens_NS[torch.arange(first, last, device="cpu") % len(tokens_NS)]


def legs(keep_ratios: Sequence[float]) -> list[tuple[float, float]]:
    """Begin and end of every ratio's leg: as long as the cut from the next larger ratio is deep.

    keep_ratios: largest first.  The first leg begins at 0, the last one ends at 1.
    """
    cuts = [larger - smaller for larger, smaller in pairwise((1.0, *keep_ratios))]
    ends = [behind / (1.0 - keep_ratios[-1] or 1.0) for behind in accumulate(cuts)]
    return list(pairwise((0.0, *ends)))


@dataclass(frozen=True)
class Decision:
    """What was chosen on held-out text at one ratio, and holds for all.

    keep_ratio: where.  candidate: its name.  plan: what it keeps there, as it is refitted.
    stages, settings: of those that refit its weights, before anything is trained.
    judgements: all that was measured to choose.
    """

    keep_ratio: float
    candidate: str
    plan: PruningPlan
    stages: tuple[str, ...]
    settings: Mapping[str, float]
    judgements: tuple[Judgement, ...]


@dataclass(frozen=True)
class _HandedOn:
    before: TrainedBefore
    numbers: Numbers


class Sharing:
    """The state of a run through several ratios.

    runner: the dense model.  keep_ratios: largest first.
    depends: whether what comes out at a ratio may depend on the others: then choices and what is learnt are handed on.
    training_helps: whether what is trained for all has lowered the held-out loss at a larger ratio: the deeper the cut,
    the more it has to make up for.
    """

    def __init__(self, runner: Runner, keep_ratios: Sequence[float], *, depends: bool = True) -> None:
        self.keep_ratios, self.depends = tuple(keep_ratios), depends
        self.teacher = RememberedTeacher(runner)
        self.decision: Decision | None = None
        self.training_helps = False
        self._done: dict[Hashable, Any] = {}
        self._handed_on: dict[float, _HandedOn] = {}

    def once(self, what: Hashable, work: Callable[[], Result]) -> Result:
        """What the work comes to, done when it is first asked for. what: names it, with all that it depends on."""
        if what not in self._done:
            self._done[what] = work()
        return self._done[what]

    def larger(self, keep_ratio: float) -> tuple[float, ...]:
        """The ratios before this one, largest first."""
        return self.keep_ratios[: self.keep_ratios.index(keep_ratio)]

    def leg(self, keep_ratio: float) -> Leg:
        """This ratio's part of what is trained for all; KeyError before the next larger one has handed on its own."""
        *_, start = ({}, *(self._handed_on[larger].numbers for larger in self.larger(keep_ratio)[-1:]))
        return Leg(*legs(self.keep_ratios)[self.keep_ratios.index(keep_ratio)], start)

    def hand_on(self, keep_ratio: float, before: TrainedBefore, numbers: Numbers) -> None:
        """Remember what was learnt at a ratio. before: the model that it was learnt on."""
        self._handed_on[keep_ratio] = _HandedOn(before, numbers)

    def has(self, keep_ratio: float) -> bool:
        """Whether that ratio has handed on what it learnt."""
        return keep_ratio in self._handed_on

    def trained_before(self, keep_ratio: float) -> tuple[TrainedBefore, ...]:
        """The models that were trained before this ratio's, largest first."""
        return tuple(self._handed_on[larger].before for larger in self.larger(keep_ratio))
