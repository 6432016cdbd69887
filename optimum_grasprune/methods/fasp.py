"""FASP: Wanda's metric over coupled columns, then closed-form restoration, layer by layer.  (arXiv 2501.09412)

The paper cuts single neurons of `v_proj` and leaves queries and keys alone, which frees no KV cache and which no engine
serves; here the attention unit is the KV head group.
"""

from torch import Tensor

from ..problem import Problem
from ..statistics import MOMENTS
from .base import Method
from .columns import column_scores
from .registry import register
from .wanda_sp import unit_metric


@register("fasp")
class FASP(Method):
    """The same share of every layer, cheapest by the metric, output projections restored by least squares."""

    source = "FASP, arXiv 2501.09412"
    statistics = (MOMENTS,)
    allocation = "uniform"
    compensation = "least_squares"
    restoration = "sequential"
    least_squares = "plain"

    def score(self, problem: Problem) -> Tensor:
        """Σ over the unit's columns j of ‖X_j‖₂ · Σ_i |W_ij|, shape (units,).  (Section 3.1)"""
        return column_scores(problem, lambda weight_OI, moments, count: unit_metric(weight_OI, moments.norm_I, count))
