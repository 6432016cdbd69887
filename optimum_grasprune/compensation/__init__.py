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
from .least_squares import restore_in_sequence, restored_on_dense_inputs, take_weights

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

DAMPINGS = (4.0, 0.5, 0.05, 0.005)
"""Ridges that are tried where held-out data can choose; the first is taken where they cannot."""

__all__ = [
    "DAMPINGS",
    "STEPS",
    "WEIGHT_STEPS",
    "Means",
    "refit",
    "refitted_model",
    "restored_on_dense_inputs",
    "take_weights",
]


@dataclass(frozen=True)
class Means:
    """The compensations that may be used. steps: in order.  restoration: inputs of the least squares."""

    steps: tuple[str, ...]
    restoration: str = "dense"

    @property
    def weight_steps(self) -> tuple[str, ...]:
        """The steps that refit weights."""
        return tuple(step for step in self.steps if step in WEIGHT_STEPS)


def refitted_model(
    dense: PreTrainedModel,
    plan: PruningPlan,
    family: Family,
    means: Means,
    tokens_NS: Tensor,
    damping: float = DAMPINGS[0],
) -> PreTrainedModel:
    """The sliced model of an unscaled plan with its weights refitted by each of the steps that do so.

    tokens_NS: what statistics look at, shape (N, S).  damping: of the least squares.
    """
    pruned = build_pruned_model(dense, plan, family, output_bias="bias" in means.steps)
    for step in means.weight_steps:
        in_sequence = means.restoration == "sequential"
        refit(step, dense, pruned, plan, family, tokens_NS, damping=damping, in_sequence=in_sequence)
    return pruned


def refit(
    step: str,
    dense: PreTrainedModel,
    pruned: PreTrainedModel,
    plan: PruningPlan,
    family: Family,
    tokens_NS: Tensor,
    *,
    damping: float,
    in_sequence: bool,
) -> None:
    """Do one of `WEIGHT_STEPS` to a sliced model, in place. tokens_NS: what statistics look at, shape (N, S).

    damping, in_sequence: of the least squares.
    """
    if step == "bias":
        add_missing_mean(dense, pruned, plan, family, tokens_NS)
    elif step == "energy":
        restore_energy(dense, pruned, plan, family, tokens_NS)
    elif in_sequence:
        restore_in_sequence(dense, pruned, plan, family, tokens_NS, damping)
    else:
        (weights,) = restored_on_dense_inputs(dense, [(plan, damping)], family, tokens_NS)
        take_weights(pruned, weights, family)
