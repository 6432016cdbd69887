"""Numbers that several models share, trained together: each step is run on one of the models, in turns.

What a model's own are follows its cut: s · (a + (s − s̄) · b), s the `strength` of its cut, s̄ the mean of all s. Where
nothing is cut nothing changes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import repeat
from statistics import fmean
from typing import TYPE_CHECKING

from torch import Tensor
from transformers import PreTrainedModel

from .trainable import Step, Trainable

if TYPE_CHECKING:
    from .runner import Runner


class Member(ABC):
    """One of the models."""

    @abstractmethod
    def model(self) -> PreTrainedModel:
        """The model, when its turn comes; it may be made for that."""

    @abstractmethod
    def attached(self, runner: Runner, numbers: Sequence[Tensor]) -> AbstractContextManager[Step]:
        """As in `Trainable.attached`. runner: of that model."""

    def readings(self) -> Mapping[str, Tensor]:
        """See `Trainable.readings`: of a step at this model."""
        return {}


@dataclass(frozen=True)
class Following:
    """How the numbers of one model follow from those of all. strength, beyond: s and s − s̄."""

    strength: float
    beyond: float

    def of(self, level: Tensor, bend: Tensor) -> Tensor:
        """Its own. level, bend: a and b."""
        return self.strength * (level + self.beyond * bend)


def strength(cut: float, deepest: float, power: float) -> float:
    """How far numbers travel at a cut beside those of the deepest: (cut ÷ deepest)^power, 0 where that cuts nothing."""
    return (cut / deepest) ** power if deepest else 0.0


def following(cuts: Sequence[float], deepest: float, power: float) -> list[Following]:
    """Of models with these cuts, at least one. deepest: that of a cut from which s is 1."""
    strengths = [strength(cut, deepest, power) for cut in cuts]
    middle = fmean(strengths)
    return [Following(each, each - middle) for each in strengths]


@dataclass
class InTurns(Trainable):
    """What is trained on several models.

    first: the numbers at first, fp32.  order: which of the members each step is run on.  place: whose turn it is.
    """

    first: Sequence[Tensor]
    members: Sequence[Member]
    order: Sequence[int]
    place: int = 0

    def start(self) -> Sequence[Tensor]:
        """See `Trainable.start`."""
        return self.first

    def turn(self, step: int) -> Member:
        """The member whose turn a step is, counted from 1."""
        self.place = self.order[step - 1]
        return self.members[self.place]

    def readings(self) -> Mapping[str, Tensor]:
        """See `Trainable.readings`."""
        return self.members[self.place].readings()

    def attached(self, runner: Runner, numbers: Sequence[Tensor]) -> AbstractContextManager[Step]:
        """TypeError: there is a runner for each of the members."""
        raise TypeError("what is trained in turns acts on no model alone")


def turns(shares: Sequence[float], length: int = 1) -> Iterator[int]:
    """Which of several each step belongs to, without end: everywhere on the way as many to each as its share has it.

    shares: in any unit; where all are 0, all are alike.  length: steps in a row to the same one.
    (Smooth weighted round-robin: all gain their share at every turn, the richest one is taken and pays for it.)
    """
    total, owed = sum(shares) or 1.0, [0.0] * len(shares)
    while True:
        owed = [each + share / total for each, share in zip(owed, shares, strict=True)]
        next_one = max(range(len(shares)), key=owed.__getitem__)
        owed[next_one] -= 1
        yield from repeat(next_one, length)
