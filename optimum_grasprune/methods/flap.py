"""FLAP: what hardly fluctuates can be replaced by its mean.  (An et al., arXiv 2312.11983)"""

import torch
from torch import Tensor

from ..problem import Problem
from ..statistics import MOMENTS
from .base import Method
from .columns import column_scores
from .registry import register


@register("flap")
class FLAP(Method):
    """Fluctuation scores, standardised per layer and kind, one global threshold; the mean becomes a bias."""

    source = "FLAP, arXiv 2312.11983"
    statistics = (MOMENTS,)
    compensation = "bias"

    def score(self, problem: Problem) -> Tensor:
        """Standardised fluctuation of every unit, shape (units,).  (Section 3.3)"""
        return column_scores(
            problem, lambda weight_OI, moments, count: unit_fluctuation(weight_OI, moments.variance_I, count)
        )


def unit_fluctuation(weight_OI: Tensor, variance_I: Tensor, count: int) -> Tensor:
    """S_j = Var(X_j) · ‖W_:j‖², standardised over the columns j, then averaged over each of `count` units' columns.

    Returns shape (count,), fp32, on the CPU; zeros where all columns fluctuate alike.
    """
    per_column_I = variance_I.float().to(weight_OI.device) * weight_OI.float().square().sum(0)
    return standardised(per_column_I).view(count, -1).mean(1).cpu()


def standardised(scores_I: Tensor) -> Tensor:
    """(S − mean) / standard deviation; zeros where all scores are equal."""
    deviation = scores_I.std()
    return (scores_I - scores_I.mean()) / deviation if deviation > 0 else torch.zeros_like(scores_I)
