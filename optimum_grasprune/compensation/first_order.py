"""Compensations that need only the mean and variance of what enters the output projections of the dense model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..calibration import Moments, collect_moments
from ..families import Family
from ..plan import PruningPlan
from ..surgery import kept_columns
from ..surgery.restoration import energy_factors, missing_mean, row_energy


@dataclass(frozen=True)
class _Pair:
    """One output projection before and after the cut. kept_K: columns that stay.  moments: of the dense input."""

    before: nn.Linear
    after: nn.Linear
    kept_K: Tensor
    moments: Moments


def _pairs(
    dense: PreTrainedModel, pruned: PreTrainedModel, plan: PruningPlan, family: Family, tokens_NS: Tensor
) -> Iterator[_Pair]:
    before, after = family.output_projections(dense), family.output_projections(pruned)
    moments = collect_moments(dense, before, tokens_NS)
    for group in plan.groups:
        key = group.layer, group.kind
        yield _Pair(before[key], after[key], kept_columns(group, before[key]), moments[key])


@torch.no_grad()
def add_missing_mean(
    dense: PreTrainedModel, pruned: PreTrainedModel, plan: PruningPlan, family: Family, tokens_NS: Tensor
) -> None:
    """Add what the cut units contribute on average to the output biases of `pruned`, in place.  (arXiv 2312.11983)

    The model must have been built with `output_bias=True`.
    """
    for pair in _pairs(dense, pruned, plan, family, tokens_NS):
        mean_O = missing_mean(pair.before.weight, pair.moments.mean_I, pair.kept_K)
        pair.after.bias.copy_(pair.after.bias.float() + mean_O.to(pair.after.bias.device))


@torch.no_grad()
def restore_energy(
    dense: PreTrainedModel, pruned: PreTrainedModel, plan: PruningPlan, family: Family, tokens_NS: Tensor
) -> None:
    """Scale each row of the output projections of `pruned` to the energy it had, in place.  (arXiv 2602.07375)"""
    for pair in _pairs(dense, pruned, plan, family, tokens_NS):
        mean_I, variance_I = pair.moments.mean_I, pair.moments.variance_I
        kept_K = pair.kept_K.to(mean_I.device)
        before_O = row_energy(pair.before.weight, mean_I, variance_I)
        after_O = row_energy(pair.after.weight, mean_I[kept_K], variance_I[kept_K])
        factor_O = energy_factors(before_O, after_O).to(pair.after.weight.device)
        pair.after.weight.copy_(pair.after.weight.float() * factor_O[:, None])
