"""Scales as their stage trains them, by themselves."""

from __future__ import annotations

from torch import Tensor

from optimum_grasprune import GRASPConfig
from optimum_grasprune.execution import Runner, Teaches
from optimum_grasprune.recovery.reference import Reference
from optimum_grasprune.recovery.scales import Scales, bounded_scale


def train_scales(runner: Runner, tokens_NS: Tensor, config: GRASPConfig, dense: Teaches | None = None) -> Tensor:
    """One multiplier per unit of a model that is pruned already, shape (units,)."""
    stage = Scales(config)
    tokens_NS, training = stage.course(Reference.on(runner, tokens_NS, 0), 0.0)
    (raw_U,) = runner.learn(stage.acting(runner), tokens_NS, training, dense)
    return bounded_scale(raw_U)
