"""DDP: a multiplier per unit, and a differentiable count of units that drives it to zero.  (arXiv 2603.08065)

Of the paper: the deterministic, unbounded multiplier ReLU(z), z = 1 at first; the annealed retention score; the
augmented Lagrangian whose weights climb; the term against undecided units; the loss, cross-entropy + 2 · divergence
from the dense model. Of its public code: the learning rates and their warm-up, the straight-through gradients, the
floor under z. Ours: a KV head group is one unit; there is one constraint, on the parameters of the whole model, where
the code has one for each kind of unit; a cap on the KV cache is a second; the result is projected to the exact budget;
AdamW has the betas of all trainings here.

Shape suffixes: U units of the whole model, L limits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ..config import Flag, GRASPConfig, MethodOptions
from ..execution import OfUnits, Pace, Training
from ..execution.trace import KEEP_RATIO
from ..execution.training import training_steps
from ..problem import Problem
from ..record.curves import KEPT
from ..units import Budget, UnitInventory, UnitMask, project
from .base import Method
from .registry import register

STEPS, TOKENS = 1000, 1000 * 16 * 2048
"""Of the published training, whose learning rates these are."""

LEARNING_RATE, DUAL_RATE, PENALTY_RATE = 2e-2, 2e-2, 4e-1
"""Of z, of λ₁ and λ₃, of λ₂."""

HIGHEST_RATE = 0.1
"""Of z, in a training that is so short that it could not cross from 1 to 0 at the published rate."""

KL_WEIGHT = 2 / 3
"""What `kl_weight=None` is here: a third of cross-entropy + 2 · divergence."""

WARMUP = 0.1
"""Share of the steps over which learning rates rise."""

LOWEST = -0.1
"""Where z stops falling, so that what is out is not far away."""

_FIRST_SOFTNESS = 0.5
_STRETCH = 0.1
_STEEPNESS = math.log((1 + _STRETCH) / _STRETCH)
"""What makes the score 0 at z = 0 and 1 at z = 2μ; the paper has it as about 2.4."""


@register("ddp")
class DDP(Method):
    """Multipliers trained on the whole model; what they end at says which units stay, and is folded."""

    source = "DDP, arXiv 2603.08065"
    allocations = ("global",)
    training = "ddp"

    class Options(MethodOptions):
        """How the constraint is enforced."""

        dual_learning_rate: Annotated[float | None, Flag("RATE")] = Field(
            default=None,
            gt=0,
            description="learning rate for the weights of the excess and of undecided units; by default 0.02 for 33 "
            "million tokens, and with their root more for fewer",
        )
        penalty_learning_rate: Annotated[float | None, Flag("RATE")] = Field(
            default=None,
            gt=0,
            description="learning rate for the weight of the squared excess; by default 0.4 for 33 million tokens, "
            "and with their root more for fewer",
        )
        final_softness: Annotated[float, Flag("MU")] = Field(
            default=0.05,
            gt=0,
            le=_FIRST_SOFTNESS,
            description="μ at the end of the training: a unit counts as a whole one from a multiplier of 2μ on",
        )

    def score(self, problem: Problem) -> Tensor:
        """What the multipliers start from: ones, shape (units,)."""
        return torch.ones(problem.inventory.num_units, dtype=torch.float32, device="cpu")

    def candidates(self, problem: Problem, scores_U: Tensor) -> dict[str, UnitMask]:
        """The units with the largest multipliers, and these."""
        config, inventory = problem.config, problem.inventory
        rates = rates_for(config, problem.tokens_NS)
        limits = limits_of(problem.budget, inventory)
        softness, within_U = config.own(self.Options).final_softness, problem.budget.within_U
        gates = SoftGates(scores_U, limits, rates, softness, within_U, config.keep_ratio)
        training = Training.of(
            config, "ddp", epochs=config.epochs, learning_rate=rates.gates, kl_weight=KL_WEIGHT, warmup=WARMUP
        )
        z_U, *_ = problem.runner.learn(gates, problem.tokens_NS, training, problem.teacher, status=gates.status)
        kept_U = project(z_U, inventory, problem.budget).kept_U
        return {config.method: UnitMask(inventory, kept_U, z_U.relu(), scores_U=z_U)}


@dataclass(frozen=True)
class Rates:
    """Learning rates. gates: of z.  dual: of λ₁ and λ₃.  penalty: of λ₂."""

    gates: float
    dual: float
    penalty: float


def rates_for(config: GRASPConfig, tokens_NS: Tensor) -> Rates:
    """What is asked for; else the published rates, raised where the training is shorter than the published one.

    z has a way to go, so its rate makes up for missing steps. The pull of the λ has to stand out from the noise of the
    gradients beside it, which AdamW measures it by, so theirs make up for the root of missing tokens.
    """
    own, steps = config.own(DDP.Options), training_steps(len(tokens_NS), config.epochs, config.batch_size)
    noise = math.sqrt(max(1.0, TOKENS / (config.epochs * tokens_NS.numel())))
    gates = min(HIGHEST_RATE, LEARNING_RATE * max(1.0, STEPS / steps))
    return Rates(
        gates if config.learning_rate is None else config.learning_rate,
        DUAL_RATE * noise if own.dual_learning_rate is None else own.dual_learning_rate,
        PENALTY_RATE * noise if own.penalty_learning_rate is None else own.penalty_learning_rate,
    )


@dataclass(frozen=True)
class Limit:
    """How much of something may stay. share_U: of each unit in all of it, shape (units,).  target: between 0 and 1.

    exact: whether less than the target is as wrong as more.
    """

    share_U: Tensor
    target: float
    exact: bool

    def on(self, device: torch.device) -> Limit:
        """The same with its shares on a device."""
        return self if self.share_U.device == device else replace(self, share_U=self.share_U.to(device))

    def excess(self, retained_U: Tensor) -> Tensor:
        """What stays beyond the target, a scalar; retained_U: how far each unit does, between 0 and 1."""
        excess = (self.share_U * retained_U).sum() - self.target
        return excess if self.exact else excess.relu()


def limits_of(budget: Budget, inventory: UnitInventory) -> tuple[Limit, ...]:
    """Parameters, which are to be used up, and the KV cache where it is capped."""
    limits = [Limit(inventory.cost_U / inventory.total_cost, budget.cost / inventory.total_cost, exact=True)]
    if budget.kv_width is not None:
        whole = inventory.total_kv_width
        limits.append(Limit(inventory.kv_width_U / whole, budget.kv_width / whole, exact=False))
    return tuple(limits)


class SoftGates(OfUnits):
    """z of every unit; for every limit λ₁, and λ₂; and λ₃. All λ start at 0 and climb.

    Added to the loss is a third, as the loss is one of the paper's, of Σ λ₁ r + λ₂ r² over the limits, r the excess,
    and λ₃ · mean of s (1 − s), s the retention score.

    final_softness: μ at the end.  within_U: True for the units that may stay at all, shape (units,), bool; the others
    are out from the first step to the last; None for all.  keep_ratio: that the limits are of, where it is known.
    """

    def __init__(
        self,
        start_U: Tensor,
        limits: Sequence[Limit],
        rates: Rates,
        final_softness: float,
        within_U: Tensor | None = None,
        keep_ratio: float | None = None,
    ) -> None:
        self.keep_ratio = keep_ratio
        self.start_U, self.limits, self.rates, self.final_softness = start_U, limits, rates, final_softness
        self.out_U = None if within_U is None else ~within_U
        self._excess: Tensor | None = None

    def start(self) -> Sequence[Tensor]:
        """z, λ₁, λ₂, λ₃: shapes (units,), (limits,), (limits,), ()."""
        linear_L = torch.zeros(len(self.limits), dtype=torch.float32, device="cpu")
        return self.start_U, linear_L, linear_L.clone(), linear_L.new_zeros(())

    def paces(self) -> Sequence[Pace]:
        """The λ climb, each at its own rate."""
        dual, penalty = (Pace(rate / self.rates.gates, ascends=True) for rate in (self.rates.dual, self.rates.penalty))
        return Pace(), dual, penalty, dual

    @property
    def kept(self) -> Tensor:
        """Share of the parameters that stayed at the last step, a scalar where it was worked out."""
        return torch.ones((), device="cpu") if self._excess is None else self._excess + self.limits[0].target

    def status(self) -> list[str]:
        """What stays, for the bar."""
        return [f"kept {float(self.kept):.1%}"]

    def readings(self) -> dict[str, Tensor]:
        """What stays, and of which run through several ratios the training is."""
        found = {f"{KEPT}parameters": self.kept}
        if self.keep_ratio is not None:
            found[KEEP_RATIO] = torch.tensor(self.keep_ratio, dtype=torch.float32, device="cpu")
        return found

    def values(self, numbers: Sequence[Tensor], progress: float) -> Tensor:
        """ReLU(z)."""
        with torch.no_grad():
            numbers[0].clamp_(min=LOWEST)
            if self.out_U is not None:
                self.out_U = self.out_U.to(numbers[0].device)  # copied at the first step alone
                numbers[0].masked_fill_(self.out_U, LOWEST)
        return relu_straight_through(numbers[0])

    def penalty(self, numbers: Sequence[Tensor], progress: float) -> Tensor:
        """The Lagrangian and the term against undecided units."""
        z_U, linear_L, quadratic_L, undecided = numbers
        retained_U = retention(z_U, softness_at(progress, self.final_softness))
        self.limits = [limit.on(z_U.device) for limit in self.limits]
        excess_L = torch.stack([limit.excess(retained_U) for limit in self.limits])
        self._excess = excess_L[0].detach()
        constraint = (linear_L * excess_L + quadratic_L * excess_L.square()).sum()
        return (constraint + undecided * (retained_U * (1 - retained_U)).mean()) * (1 - KL_WEIGHT)


def softness_at(progress: float, final: float) -> float:
    """μ = μ₀ − (μ₀ − μ_T) √progress, from ½ on; progress: share of the training that is done."""
    return _FIRST_SOFTNESS - (_FIRST_SOFTNESS - final) * math.sqrt(progress)


def retention(z_U: Tensor, softness: float) -> Tensor:
    """How far a unit stays, shape (units,): a sigmoid stretched to be 0 at z = 0 and 1 at z = 2μ, and clamped there.

    softness: μ. The smaller, the closer to the count of what is above 0. The gradient passes the clamps as if they were
    not there, so that what is out can come back.
    """
    raw_U = torch.sigmoid((relu_straight_through(z_U) - softness) * (_STEEPNESS / softness))
    stretched_U = raw_U * (1 + 2 * _STRETCH) - _STRETCH
    return stretched_U + (stretched_U.clamp(0, 1) - stretched_U).detach()


def relu_straight_through(z_U: Tensor) -> Tensor:
    """ReLU forward, the gradient of the identity backward; shape (units,)."""
    return z_U + (z_U.relu() - z_U).detach()
