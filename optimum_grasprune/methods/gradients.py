"""Scores of units from the gradients of their multipliers."""

from torch import Tensor

from ..calibration.sensitivity import Reduction, sensitivity
from .base import Task


def sensitivity_per_parameter(task: Task, reduce: Reduction) -> Tensor:
    """The sensitivity of every unit divided by its cost, from one backward pass; shape (units,)."""
    total_U = sensitivity(task.model, task.family, task.inventory, task.statistic_tokens_NS, reduce)
    return total_U / task.inventory.cost_U
