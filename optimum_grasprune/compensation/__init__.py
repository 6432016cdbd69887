"""What makes up for the units that were cut. Any of it goes with any choice of units.

Weights are refitted first (`refit`), scales are trained on what that gives (`gating.train_scales`).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

from ..families import Family
from ..plan import PruningPlan
from ..surgery import build_pruned_model
from .first_order import add_missing_mean, restore_energy
from .least_squares import FITS, Fit, restore_in_sequence, restored_on_dense_inputs, take_weights

STEPS: dict[str, tuple[str, ...]] = {
    "none": (),
    "scales": ("scales",),
    "least_squares": ("least_squares",),
    "both": ("least_squares", "scales"),
    "bias": ("bias",),
    "energy": ("energy",),
}
"""What each value of `MethodOptions.compensation` does, in order."""

WEIGHT_STEPS = ("least_squares", "bias", "energy")
"""The steps that change weights and so need the calibration sequences again when a plan is replayed."""

__all__ = [
    "FITS",
    "STEPS",
    "WEIGHT_STEPS",
    "Fit",
    "Means",
    "added_parameters",
    "refit",
    "refitted_model",
    "restored_on_dense_inputs",
    "take_weights",
]


@dataclass(frozen=True)
class Means:
    """The compensations that may be used. steps: in order.  restoration, fit: inputs and rule of the least squares."""

    steps: tuple[str, ...]
    restoration: str = "dense"
    fit: Fit = FITS["robust"]

    @property
    def weight_steps(self) -> tuple[str, ...]:
        """The steps that refit weights."""
        return tuple(step for step in self.steps if step in WEIGHT_STEPS)


def added_parameters(means: Means, model: PreTrainedModel, family: Family) -> int:
    """Parameters that the steps add to a model: a bias to each output projection that has none."""
    if "bias" not in means.steps:
        return 0
    return sum(linear.out_features for linear in family.output_projections(model).values() if linear.bias is None)


def refitted_model(
    dense: PreTrainedModel,
    plan: PruningPlan,
    family: Family,
    means: Means,
    tokens_NS: Tensor,
    damping: float | None = None,
) -> PreTrainedModel:
    """The sliced model of an unscaled plan with its weights refitted by each of the steps that do so.

    tokens_NS: what statistics look at, shape (N, S).  damping: of the least squares; None for the rule's first.
    """
    pruned = build_pruned_model(dense, plan, family, output_bias="bias" in means.steps)
    for step in means.weight_steps:
        refit(step, dense, pruned, plan, family, tokens_NS, means, damping or means.fit.dampings[0])
    return pruned


def refit(
    step: str,
    dense: PreTrainedModel,
    pruned: PreTrainedModel,
    plan: PruningPlan,
    family: Family,
    tokens_NS: Tensor,
    means: Means,
    damping: float,
) -> None:
    """Do one of `WEIGHT_STEPS` to a sliced model, in place. tokens_NS: what statistics look at, shape (N, S).

    means, damping: how least squares are done.
    """
    if step == "bias":
        add_missing_mean(dense, pruned, plan, family, tokens_NS)
    elif step == "energy":
        restore_energy(dense, pruned, plan, family, tokens_NS)
    elif means.restoration == "sequential":
        restore_in_sequence(dense, pruned, plan, family, tokens_NS, damping, means.fit)
    else:
        (weights,) = restored_on_dense_inputs(dense, [(plan, damping)], family, tokens_NS, means.fit)
        take_weights(pruned, weights, family)
