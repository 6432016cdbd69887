"""Wanda-sp: weights times activations, summed over a unit.

(Sun et al., arXiv 2306.11695; An et al., arXiv 2312.11983)
"""

import torch
from torch import Tensor

from ..calibration import collect_moments, output_projections
from .base import Method, Task
from .registry import register


@register("wanda_sp")
class WandaSP(Method):
    """FASP's metric without its restoration."""

    source = "Wanda-sp, arXiv 2312.11983"
    allocation = "uniform"

    def score(self, task: Task) -> Tensor:
        """Σ over the unit's columns j of ‖X_j‖₂ · Σ_i |W_ij|, shape (units,)."""
        return wanda_scores(task)


def wanda_scores(task: Task) -> Tensor:
    """The metric of every unit, from one forward pass; X is the input of `down_proj` or `o_proj`."""
    modules = output_projections(task.model, task.family)
    moments = collect_moments(task.model, modules, task.statistic_tokens_NS)
    return torch.cat(
        [
            unit_metric(modules[g.layer, g.kind].weight.detach(), moments[g.layer, g.kind].norm_I, g.count)
            for g in task.inventory.groups
        ]
    )


def unit_metric(weight_OI: Tensor, norm_I: Tensor, count: int) -> Tensor:
    """S_j = ‖X_j‖₂ · Σ_i |W_ij|, summed over each of `count` units' columns.  (FASP, arXiv 2501.09412, section 3.1)

    Returns shape (count,), fp32, on the CPU.
    """
    per_column_I = norm_I.float() * weight_OI.float().abs().sum(0)
    return per_column_I.view(count, -1).sum(1).cpu()
