"""What makes up for the units that were cut. Any of it goes with any choice of units.

Weights are refitted first (`refit`), scales are trained on what that gives (`gating.train_scales`).
"""

from __future__ import annotations

from torch import Tensor
from transformers import PreTrainedModel

from ..families import Family
from ..plan import PruningPlan
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

__all__ = ["DAMPINGS", "STEPS", "WEIGHT_STEPS", "refit", "restored_on_dense_inputs", "take_weights"]


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
