"""One training of numbers for the models of several keep ratios.

What a row or a unit is multiplied by changes steadily with the cut: g(ρ) = s · (a + (s − s̄) · b), s = (cut ÷ deepest
cut)^¾, s̄ the mean of all s; where nothing is cut nothing changes. a and b are what is trained, for all features or
units of the dense model, and every step takes the model of one of the ratios, in turns. A step at one ratio is not lost
on the others, as for gates (`gates.several`). A walk down through the ratios, each with a part of the steps, started
from what the next larger one had learnt; with 2.4 times the steps it came to more loss, above all on other texts.

Shape suffixes: D numbers of the dense model, K those of a sliced one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import fmean
from typing import overload

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..execution import InTurns, Member, Runner, Training, turns
from ..execution.trace import KEEP_RATIO
from ..execution.trainable import Step
from ..execution.training import training_steps
from ..surgery import Draft
from ..units import PruningPlan
from .base import NumbersStage, share_cut
from .reference import Reference

LONGER = 1.25
"""Length of the training, as a multiple of one ratio's own."""

STEEPER = 3.0
"""A ratio's share of the steps grows with its cut, to this power: what goes has to be made up for, and the deepest cut
has neighbours on one side only."""

TURNS = 200
"""How often, at most, another model is made for its turn, if they are not all held."""

HELD_MODELS_BYTES = 2 * 2**30
"""Sliced models whose layers have no more bytes than this together are all in memory at once."""


@dataclass(frozen=True)
class Sliced:
    """A model that is trained with others. draft: refitted; it can be built again afterwards.  plan: what it keeps."""

    draft: Draft
    plan: PruningPlan


def learn_together(stage: NumbersStage, reference: Reference, models: Mapping[float, Sliced]) -> dict[float, Tensor]:
    """What a stage's numbers come to for each of several models, shape (K,) each, fp32, on the CPU.

    models: by keep ratio.
    """
    dense = reference.runner
    cuts = [share_cut(sliced.plan, dense) for sliced in models.values()]
    strengths = strengths_of(cuts)
    middle = fmean(strengths)
    held = _Held(dense, sum(_bytes_left(dense, sliced.plan) for sliced in models.values()) <= HELD_MODELS_BYTES)
    members = [
        _OfRatio(ratio, stage, dense, sliced, strength, strength - middle, held)
        for (ratio, sliced), strength in zip(models.items(), strengths, strict=True)
    ]
    tokens_NS, training = stage.course(reference, max(cuts))
    tokens_NS, training = lengthened(tokens_NS, training)
    steps = training_steps(len(tokens_NS), training.epochs, training.batch_size)
    order = turns([cut**STEEPER for cut in cuts], steps, max(1, steps // TURNS)) if max(cuts) > 0 else [0] * steps
    first = torch.zeros(stage.count(dense.beside(members[0].model()), dense), dtype=torch.float32, device="cpu")
    trained = InTurns((first, first.clone()), members, order)
    learnt = dense.learn(trained, tokens_NS, training, reference.teacher)
    return {ratio: member.numbers_of(learnt) for ratio, member in zip(models, members, strict=True)}


def strengths_of(cuts: Sequence[float]) -> list[float]:
    """How far the numbers of each travel, s, beside those of the deepest cut, which has 1."""
    deepest = max(cuts)
    return [(cut / deepest) ** 0.75 if deepest else 0.0 for cut in cuts]


def lengthened(tokens_NS: Tensor, training: Training) -> tuple[Tensor, Training]:
    """The course of one ratio as that of all: longer by some of the same sequences."""
    more = round((LONGER - 1) * len(tokens_NS))
    rehearsed = training.rehearsed + training.rehearsed[:more]
    return torch.cat([tokens_NS, tokens_NS[:more]]), replace(training, rehearsed=rehearsed)


class _Held:
    """Sliced models, all of them, or the one whose turn it is. runner: of the dense model."""

    def __init__(self, runner: Runner, all_of_them: bool) -> None:
        self._runner, self._all = runner, all_of_them
        self._models: dict[int, PreTrainedModel] = {}

    def model(self, draft: Draft) -> PreTrainedModel:
        """The model of a draft, built if it is not held."""
        if id(draft) not in self._models:
            if not self._all:
                self._models.clear()
            self._models[id(draft)] = self._runner.built(draft, again=True)
        return self._models[id(draft)]


@dataclass(frozen=True)
class _OfRatio(Member):
    """One ratio's model. strength, beyond: s and s − s̄."""

    keep_ratio: float
    stage: NumbersStage
    dense: Runner
    sliced: Sliced
    strength: float
    beyond: float
    held: _Held

    def model(self) -> PreTrainedModel:
        """See `Member.model`."""
        return self.held.model(self.sliced.draft)

    @contextmanager
    def attached(self, runner: Runner, numbers: Sequence[Tensor]) -> Iterator[Step]:
        """See `Member.attached`."""
        with self.stage.acting(runner).attached(runner, self._own(runner, numbers)) as step:
            yield step

    def readings(self) -> Mapping[str, Tensor]:
        """See `Member.readings`: the ratio, so that a checkpoint's report shows its own steps."""
        return {KEEP_RATIO: torch.tensor(self.keep_ratio, dtype=torch.float32, device="cpu")}

    def numbers_of(self, numbers: Sequence[Tensor]) -> Tensor:
        """Its own of what was learnt."""
        (own_K,) = self._own(self.dense.beside(self.model()), numbers)
        return own_K.clone()

    def _own(self, runner: Runner, numbers: Sequence[Tensor]) -> _Own:
        places_K = self.stage.places(runner, self.dense, self.sliced.plan)
        return _Own(numbers, places_K.to(numbers[0].device), self.strength, self.beyond)


@dataclass(frozen=True)
class _Own(Sequence[Tensor]):
    """The numbers of one model, one tensor, worked out of those of all whenever they are asked for."""

    of_all: Sequence[Tensor]
    places_K: Tensor
    strength: float
    beyond: float

    def __len__(self) -> int:
        return 1

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | Sequence[Tensor]:
        level_D, bend_D = self.of_all
        return [self.strength * (level_D + self.beyond * bend_D)[self.places_K]][index]


def _bytes_left(dense: Runner, plan: PruningPlan) -> int:
    """What the prunable parameters that a plan keeps take."""
    return plan.mask(dense.inventory).kept_cost * dense.model.dtype.itemsize
