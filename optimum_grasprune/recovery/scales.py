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
from .base import Learnt, NumbersStage
from .reference import Reference, Trial
from .registry import register

if TYPE_CHECKING:
    from ..config import GRASPConfig


@register("scales")
@dataclass(frozen=True)
class Scales(NumbersStage):
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

    def course(self, reference: Reference, cut: float) -> tuple[Tensor, Training]:
        """The first calibration sequences, at the same rate whatever is cut."""
        config = self.config
        rate = config.scale_learning_rate
        training = Training.of(config, "scales", epochs=config.scale_epochs, learning_rate=rate)
        return reference.tokens_NS[: config.scale_samples], training

    def acting(self, pruned: Runner) -> UnitMultipliers:
        """The scales of its units, γ = 1 + ½·tanh(g)."""
        raw_U = torch.zeros(pruned.inventory.num_units, dtype=torch.float32, device="cpu")
        return UnitMultipliers(raw_U, lambda raw_U, _: bounded_scale(raw_U))

    def places(self, pruned: Runner, dense: Runner, plan: PruningPlan) -> Tensor:
        """Those of the units that stay."""
        return plan.mask(dense.inventory).kept_U.nonzero().flatten().cpu()

    def count(self, pruned: Runner, dense: Runner) -> int:
        """Units of the dense model."""
        return dense.inventory.num_units

    def learnt(self, numbers: Tensor, pruned: Runner, plan: PruningPlan) -> LearntScales:
        """Scales to be folded."""
        return LearntScales(bounded_scale(numbers), pruned, plan)

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


def bounded_scale(raw_U: Tensor) -> Tensor:
    """γ = 1 + ½·tanh(g): 1 at the start, never below ½ or above 1½.  (Section 3.3)"""
    return 1 + 0.5 * torch.tanh(raw_U)
