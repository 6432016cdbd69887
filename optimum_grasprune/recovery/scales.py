"""One trained multiplier per kept unit, folded into the output projections.  (GRASPrune, arXiv 2604.19398, section 3.3)

Shape suffixes: N sequences, S sequence, U units of the sliced model, which are the kept ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PreTrainedModel
from typing_extensions import Self

from ..execution import Runner, Teaches, Training, UnitMultipliers
from ..sharing import Numbers
from ..surgery import fold_scales
from ..units import PruningPlan
from .base import Learnt, TrainedStage
from .reference import Reference, Trial
from .registry import register

if TYPE_CHECKING:
    from ..config import GRASPConfig

_NUMBERS = "scales"
_WITHIN = 1 - 1e-6


@register("scales")
@dataclass(frozen=True)
class Scales(TrainedStage):
    """Trains the scales on the sliced model; the plan holds them, so that a replay only folds."""

    config: GRASPConfig

    name = "scales"
    sentence = "One trained scale per kept unit is folded into the output projections"
    needs_sequences = True
    options = ("scale_samples", "scale_epochs", "scale_learning_rate")
    in_plan = True
    continues = True

    @classmethod
    def from_config(cls, config: GRASPConfig) -> Self:
        """The stage of a configuration."""
        return cls(config)

    @classmethod
    def held_by(cls, plan: PruningPlan) -> bool:
        """Whether the plan has scales."""
        return plan.groups[0].scales is not None

    def taught_on(self, reference: Reference) -> Tensor:
        """What it is trained on, where the configuration has a teacher."""
        tokens_NS, _ = reference.trained_on(self.config.scale_samples, self.config.scale_epochs)
        return tokens_NS if self.config.kl_weight else tokens_NS[:0]

    def train(self, reference: Reference, pruned: PreTrainedModel, plan: PruningPlan) -> LearntScales:
        """Train one scale per unit on the first calibration sequences."""
        config, runner, dense = self.config, reference.runner.beside(pruned), reference.runner
        tokens_NS, epochs = reference.trained_on(config.scale_samples, config.scale_epochs)
        config = config.model_copy(update={"scale_epochs": epochs})
        start_U = None if reference.leg is None else reference.leg.start.get(_NUMBERS)
        if start_U is not None:
            start_U = start_U[plan.mask(dense.inventory).kept_U]
        return LearntScales(train_scales(runner, tokens_NS, config, reference.teacher, start_U), runner, plan)

    def replay(self, reference: Reference, pruned: PreTrainedModel, kept: PruningPlan, recorded: Trial) -> PruningPlan:
        """Fold the scales of the plan."""
        fold_scales(pruned, recorded.plan, reference.family, reference.runner.beside(pruned).editing)
        return recorded.plan


@dataclass(frozen=True)
class LearntScales(Learnt):
    """Scales of a sliced model. scales_U: shape (units,), fp32, on the CPU.  plan: what was kept, unscaled."""

    scales_U: Tensor
    runner: Runner
    plan: PruningPlan

    def numbers(self, dense: Runner) -> Numbers:
        """G by unit."""
        raw_U = torch.zeros(dense.inventory.num_units, dtype=torch.float32, device="cpu")
        raw_U[self.plan.mask(dense.inventory).kept_U] = raw_scale(self.scales_U)
        return {_NUMBERS: raw_U}

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """The units of the pruned model are multiplied by their scales, by hooks."""
        with self.runner.gated() as gates:
            gates.values_U = self.scales_U
            yield

    def fold(self) -> PruningPlan:
        """Multiply the scales into the weights; the plan with them."""
        plan = self.plan.with_scales(self.scales_U)
        fold_scales(self.runner.model, plan, self.runner.family, self.runner.editing)
        return plan


def train_scales(
    runner: Runner,
    tokens_NS: Tensor,
    config: GRASPConfig,
    dense: Teaches | None = None,
    start_U: Tensor | None = None,
) -> Tensor:
    """One multiplier per unit of an already pruned model, γ = 1 + ½·tanh(g).  (Section 3.3)

    The model is the sliced one, so the units are the kept ones and each step costs what the pruned model costs.
    tokens_NS: shape (N, S), int64.  dense: the teacher, where `config.kl_weight` asks for one.
    start_U: g at the start, shape (units,); zeros if None.
    Returns γ, shape (units,), fp32, on the CPU, each between ½ and 1½.
    """
    training = Training.of(config, "scales", epochs=config.scale_epochs, learning_rate=config.scale_learning_rate)
    if start_U is None:
        start_U = torch.zeros(runner.inventory.num_units, dtype=torch.float32, device="cpu")
    trained = UnitMultipliers(start_U, lambda raw_U, _: bounded_scale(raw_U))
    (raw_U,) = runner.learn(trained, tokens_NS, training, dense)
    return bounded_scale(raw_U)


def bounded_scale(raw_U: Tensor) -> Tensor:
    """γ = 1 + ½·tanh(g): 1 at the start, never below ½ or above 1½.  (Section 3.3)"""
    return 1 + 0.5 * torch.tanh(raw_U)


def raw_scale(scales_U: Tensor) -> Tensor:
    """G of γ, finite even where γ is at its bounds."""
    return torch.atanh((2 * (scales_U - 1)).clamp(-_WITHIN, _WITHIN))
