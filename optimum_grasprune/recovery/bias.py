"""The mean of what was cut, as a bias.  (FLAP, arXiv 2312.11983)

Shape suffixes: O output features, I input features before the cut, K those that stay.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..numerics import in_fp64
from ..statistics import MOMENTS
from .base import WeightStage
from .reference import Reference, Trial
from .registry import register


@register("bias")
class MeanBias(WeightStage):
    """Adds what the cut units contribute on average to the biases of the output projections."""

    name = "bias"
    sentence = "The output projections have a bias in place of the mean of what was cut"
    changes_weights = False
    statistics = (MOMENTS,)
    output_bias = True

    @torch.no_grad()
    def refit(self, reference: Reference, trial: Trial, pruned: PreTrainedModel) -> None:
        """Add the mean to the output biases, which the model was built with."""
        for cut in reference.cut_maps(pruned, trial.plan):
            mean_O = missing_mean(cut.before.weight, reference.statistics[MOMENTS][cut.path].mean_I, cut.kept_K)
            cut.after.bias.copy_(cut.after.bias.float() + mean_O.to(cut.after.bias.device))


def missing_mean(weight_OI: Tensor, mean_I: Tensor, kept_K: Tensor) -> Tensor:
    """W · (μ ⊙ (1 − m)): what the cut columns contribute on average, shape (O,), fp32.  (FLAP, arXiv 2312.11983)

    mean_I: mean input of the dense layer, shape (I,).  kept_K: indices of the columns that stay.
    """
    weight_OI = in_fp64(weight_OI)
    cut_I = torch.ones_like(weight_OI[0])
    cut_I[kept_K.to(weight_OI.device)] = 0
    return (weight_OI @ (in_fp64(mean_I).to(weight_OI.device) * cut_I)).float()
