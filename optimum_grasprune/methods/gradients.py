"""Scores of units from the gradients of their multipliers."""

import torch
from torch import Tensor

from ..budget import project
from ..calibration.sensitivity import Reduction, sensitivity
from ..gating import budget_at
from .base import Task


def sensitivity_per_parameter(task: Task, reduce: Reduction) -> Tensor:
    """The sensitivity of every unit divided by its cost, from one backward pass; shape (units,)."""
    total_U = sensitivity(task.model, task.family, task.inventory, task.statistic_tokens_NS, reduce)
    return total_U / task.inventory.cost_U


def annealed_sensitivity(task: Task, reduce: Reduction, first_U: Tensor, rounds: int) -> Tensor:
    """Sensitivity per parameter measured again and again while the budget shrinks to the task's; shape (units,).

    Every round cuts what scores lowest and measures the units that stay in the model so left, on its share of the
    statistic sequences; a unit's score is the running mean of its measurements. What is cut does not come back, and
    ends below everything that stays.

    first_U: `sensitivity_per_parameter` of the whole model.  rounds: measurements in all, the first included.
    """
    score_U, kept_U = first_U.clone(), torch.ones(len(first_U), dtype=torch.bool)
    shares = task.statistic_tokens_NS.tensor_split(rounds)
    for done in range(1, rounds):
        budget = budget_at(task.budget, task.inventory.total_cost, 1.0, done / (rounds - 1))
        kept_U = project(_below(score_U, kept_U), task.inventory, budget).kept_U
        if len(shares[done]):
            again_U = sensitivity(task.model, task.family, task.inventory, shares[done], reduce, kept_U=kept_U)
            score_U = torch.where(kept_U, (score_U + again_U / task.inventory.cost_U) / 2, score_U)
    return _below(score_U, kept_U)


def _below(score_U: Tensor, kept_U: Tensor) -> Tensor:
    """The scores with those of units that are out below those of all others, in the same order."""
    lowest = score_U[kept_U].min()
    highest = score_U[~kept_U].max() if not kept_U.all() else lowest
    if highest < lowest:
        return score_U
    return torch.where(kept_U, score_U, score_U * (lowest / (2 * highest)))
