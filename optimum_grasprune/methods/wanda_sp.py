"""Wanda-sp: weights times activations, summed over a unit.

(Sun et al., arXiv 2306.11695; An et al., arXiv 2312.11983)
"""

from torch import Tensor

from ..problem import Problem
from ..statistics import MOMENTS
from .base import Method
from .columns import column_scores
from .registry import register


@register("wanda_sp")
class WandaSP(Method):
    """FASP's metric without its restoration."""

    source = "Wanda-sp, arXiv 2312.11983"
    statistics = (MOMENTS,)
    allocation = "uniform"

    def score(self, problem: Problem) -> Tensor:
        """Σ over the unit's columns j of ‖X_j‖₂ · Σ_i |W_ij|, shape (units,)."""
        return column_scores(problem, lambda weight_OI, moments, count: unit_metric(weight_OI, moments.norm_I, count))


def unit_metric(weight_OI: Tensor, norm_I: Tensor, count: int) -> Tensor:
    """S_j = ‖X_j‖₂ · Σ_i |W_ij|, summed over each of `count` units' columns.  (FASP, arXiv 2501.09412, section 3.1)

    Returns shape (count,), fp32, on the CPU.
    """
    per_column_I = norm_I.float().to(weight_OI.device) * weight_OI.float().abs().sum(0)
    return per_column_I.view(count, -1).sum(1).cpu()
