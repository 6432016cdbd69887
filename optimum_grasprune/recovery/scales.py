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

from ..execution import Runner, Training, UnitMultipliers
from ..surgery import fold_scales
from ..units import PruningPlan
from .base import Learnt, TrainedStage
from .reference import Reference, Trial
from .registry import register

if TYPE_CHECKING:
    from ..config import GRASPConfig


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

    @classmethod
    def from_config(cls, config: GRASPConfig) -> Self:
        """The stage of a configuration."""
        return cls(config)

    @classmethod
    def held_by(cls, plan: PruningPlan) -> bool:
        """Whether the plan has scales."""
        return plan.groups[0].scales is not None

    def train(self, reference: Reference, pruned: PreTrainedModel, plan: PruningPlan) -> LearntScales:
        """Train one scale per unit on the first calibration sequences."""
        runner = reference.runner.beside(pruned)
        scales_U = train_scales(runner, reference.tokens_NS[: self.config.scale_samples], self.config, reference.runner)
        return LearntScales(scales_U, runner, plan)

    def replay(self, reference: Reference, pruned: PreTrainedModel, kept: PruningPlan, recorded: Trial) -> PruningPlan:
        """Fold the scales of the plan."""
        fold_scales(pruned, recorded.plan, reference.family)
        return recorded.plan


@dataclass(frozen=True)
class LearntScales(Learnt):
    """Scales of a sliced model. scales_U: shape (units,), fp32, on the CPU.  plan: what was kept, unscaled."""

    scales_U: Tensor
    runner: Runner
    plan: PruningPlan

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """The units of the pruned model are multiplied by their scales, by hooks."""
        with self.runner.gated() as gates:
            gates.values_U = self.scales_U
            yield

    def fold(self) -> PruningPlan:
        """Multiply the scales into the weights; the plan with them."""
        plan = self.plan.with_scales(self.scales_U)
        fold_scales(self.runner.model, plan, self.runner.family)
        return plan


def train_scales(runner: Runner, tokens_NS: Tensor, config: GRASPConfig, dense: Runner | None = None) -> Tensor:
    """One multiplier per unit of an already pruned model, γ = 1 + ½·tanh(g).  (Section 3.3)

    The model is the sliced one, so the units are the kept ones and each step costs what the pruned model costs.
    tokens_NS: shape (N, S), int64.  dense: the teacher, where `config.kl_weight` asks for one.
    Returns γ, shape (units,), fp32, on the CPU, each between ½ and 1½.
    """
    training = Training.of(config, "scales", epochs=config.scale_epochs, learning_rate=config.scale_learning_rate)
    start_U = torch.zeros(runner.inventory.num_units, dtype=torch.float32, device="cpu")
    trained = UnitMultipliers(start_U, lambda raw_U, _: bounded_scale(raw_U))
    (raw_U,) = runner.learn(trained, tokens_NS, training, dense)
    return bounded_scale(raw_U)


def bounded_scale(raw_U: Tensor) -> Tensor:
    """γ = 1 + ½·tanh(g): 1 at the start, never below ½ or above 1½.  (Section 3.3)"""
    return 1 + 0.5 * torch.tanh(raw_U)
