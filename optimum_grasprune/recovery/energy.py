"""Each row gets back the energy that it had: the only stage that can make up for single weights too.

(Our reading of statistical correction, arXiv 2602.07375; docs/methods.md says what is a reading and what is not.)

Shape suffixes: O output features (rows), I input features (columns) before the cut, K those that stay.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..numerics import fp64_device, in_fp64
from ..statistics import MOMENTS, Moments
from ..units import ElementMask
from .base import WeightStage
from .reference import Reference, Trial
from .registry import register


@register("energy")
class RowEnergy(WeightStage):
    """Scales each row of the maps that lost something; where single weights were cut, zeros stay zeros."""

    name = "energy"
    sentence = "The rows of the output projections were scaled to the energy they had"
    statistics = (MOMENTS,)
    single_weights = True

    @torch.no_grad()
    def refit(self, reference: Reference, trial: Trial, pruned: PreTrainedModel) -> None:
        """Scale the rows, from the moments of the dense model's own inputs; biases change where single weights went."""
        for cut in reference.cut_maps(pruned, trial.cut):
            if not len(cut.kept_K):
                continue
            moments = reference.statistics[MOMENTS][cut.path]
            has_bias = isinstance(trial.cut, ElementMask) and cut.after.bias is not None
            weight_OK, shift_O = corrected(cut.before.weight, cut.after.weight, moments, cut.kept_K, has_bias=has_bias)
            cut.after.weight.copy_(weight_OK)
            if shift_O is not None:
                cut.after.bias.copy_(cut.after.bias + shift_O.to(cut.after.bias.device))


def corrected(
    before_OI: Tensor, after_OK: Tensor, moments: Moments, kept_K: Tensor | None = None, *, has_bias: bool
) -> tuple[Tensor, Tensor | None]:
    """(the pruned weight with its rows scaled, what is to be added to the bias), shapes (O, K) and (O,).

    Without a bias, r_i = √(E_i(W) / E_i(W⊙M)), the energy of the mean included, and nothing to add. A bias can give
    back the mean exactly, W μ − r ⊙ (W⊙M) μ, so that only the variance is left to r: its energies are those at μ = 0.

    before_OI: W.  after_OK: W⊙M, or the columns that stay of it.  kept_K: their indices; None for all, without which no
    bias is corrected.  Returns fp32.
    """
    mean_I, variance_I = (part.to(fp64_device(before_OI.device)) for part in (moments.mean_I, moments.variance_I))
    mean_K, variance_K = (part if kept_K is None else part[kept_K] for part in (mean_I, variance_I))
    before_O = row_energy(before_OI, torch.zeros_like(mean_I) if has_bias else mean_I, variance_I)
    after_O = row_energy(after_OK, torch.zeros_like(mean_K) if has_bias else mean_K, variance_K)
    scaled_OK = after_OK.float() * energy_factors(before_O, after_O)[:, None].to(after_OK.device)
    if not has_bias:
        return scaled_OK, None
    return scaled_OK, ((in_fp64(before_OI) - in_fp64(scaled_OK)) @ mean_I).float()


def row_energy(weight_OI: Tensor, mean_I: Tensor, variance_I: Tensor) -> Tensor:
    """E_i = (Σ_j w_ij μ_j)² + Σ_j w_ij² σ_j², the mean square of each output if inputs are uncorrelated; shape (O,)."""
    weight_OI = in_fp64(weight_OI)
    mean_I, variance_I = (in_fp64(part).to(weight_OI.device) for part in (mean_I, variance_I))
    return (weight_OI @ mean_I).square() + weight_OI.square() @ variance_I


def energy_factors(before_O: Tensor, after_O: Tensor, largest: float = 2.0) -> Tensor:
    """√(E before / E after) for every row, between 1 / `largest` and `largest`; 1 where nothing is left. Shape (O,)."""
    factor_O = (before_O / after_O).sqrt().clamp(1 / largest, largest)
    return torch.where(after_O > 0, factor_O, torch.ones_like(factor_O)).float()
