"""Numbers for the models of several keep ratios.

The model of the deepest cut has a training of its own, as in a run for it alone; all others have one together that
starts from what that came to. What a row or a unit is multiplied by changes steadily with the cut: g(ρ) = s · (a + (s −
s̄) · b), as `execution.following` has it. a and b are what is trained, for all features or units of the dense model, and
every step takes the model of one of the ratios, in turns. A step at one ratio is not lost on the others. A walk down
through the ratios, each with a part of the steps, started from what the next larger one had learnt; with 2.4 times the
steps it came to more loss, above all on other texts.

Shape suffixes: D numbers of the dense model, K those of a sliced one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import overload

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..execution import Following, InTurns, Member, Runner, Training, following, turns
from ..execution.trace import KEEP_RATIO
from ..execution.trainable import Step
from ..execution.training import training_steps
from ..surgery import Draft
from ..units import PruningPlan
from .base import NumbersStage, share_cut
from .reference import Reference

OTHERS = 0.75
"""Length of the training of all others, as a multiple of that of the deepest cut."""

RATE = 0.6
"""Learning rate of that, as a multiple of the deepest cut's: it starts close to where it goes. At the whole rate the
others come to suit the calibration text, and lose on text that is further from it."""

POWER = 0.75
"""How the numbers travel with the cut, as the learning rate of one by itself does."""

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

    models: by keep ratio, the deepest cut last.
    """
    dense = reference.runner
    held = _Held(dense, sum(_bytes_left(dense, sliced.plan) for sliced in models.values()) <= HELD_MODELS_BYTES)
    *others, (smallest, deepest) = models.items()
    cut, pruned = share_cut(deepest.plan, dense), dense.beside(held.model(deepest.draft))
    tokens_NS, training = stage.course(reference, cut)
    (own_K,) = pruned.learn(stage.acting(pruned), tokens_NS, training, reference.teacher)
    pruned.trainings[-1] = pruned.trainings[-1].at(smallest)
    learnt = {smallest: own_K.cpu()}
    if not others:
        return learnt
    level_D = torch.zeros(stage.count(pruned, dense), dtype=torch.float32, device="cpu")
    level_D[stage.places(pruned, dense, deepest.plan)] = learnt[smallest]
    cuts = [share_cut(sliced.plan, dense) for _, sliced in others]
    members = [
        _OfRatio(ratio, stage, dense, sliced, follows, held)
        for (ratio, sliced), follows in zip(others, following(cuts, cut, POWER), strict=True)
    ]
    tokens_NS, training = shortened(tokens_NS, training)
    steps = training_steps(len(tokens_NS), training.epochs, training.batch_size)
    # All alike: with more steps for deeper cuts, which start close to where they go, the mildest lacked more.
    order = islice(turns([float(each > 0) for each in cuts], max(1, steps // TURNS)), steps)
    trained = InTurns((level_D, torch.zeros_like(level_D)), members, list(order))
    numbers = dense.learn(trained, tokens_NS, training, reference.teacher)
    return {**{member.keep_ratio: member.numbers_of(numbers) for member in members}, **learnt}


def shortened(tokens_NS: Tensor, training: Training) -> tuple[Tensor, Training]:
    """The course of the deepest cut as that of all others: the first of its sequences, more slowly."""
    count = sequences_of_the_others(len(tokens_NS))
    rate = RATE * training.learning_rate
    return tokens_NS[:count], replace(training, rehearsed=training.rehearsed[:count], learning_rate=rate)


def sequences_of_the_others(count: int) -> int:
    """How many sequences all other models are trained on together. count: those of the deepest cut, at least one."""
    return max(1, round(OTHERS * count))


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
    """One ratio's model. follows: how its numbers do from those of all."""

    keep_ratio: float
    stage: NumbersStage
    dense: Runner
    sliced: Sliced
    follows: Following
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
        return _Own(numbers, places_K.to(numbers[0].device), self.follows)


@dataclass(frozen=True)
class _Own(Sequence[Tensor]):
    """The numbers of one model, one tensor, worked out of those of all whenever they are asked for."""

    of_all: Sequence[Tensor]
    places_K: Tensor
    follows: Following

    def __len__(self) -> int:
        return 1

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | Sequence[Tensor]:
        level_D, bend_D = self.of_all
        return [self.follows.of(level_D, bend_D)[self.places_K]][index]


def _bytes_left(dense: Runner, plan: PruningPlan) -> int:
    """What the prunable parameters that a plan keeps take."""
    return plan.mask(dense.inventory).kept_cost * dense.model.dtype.itemsize
