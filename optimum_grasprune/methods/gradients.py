"""Scores of units from the gradients of their multipliers."""

import math

import torch
from torch import Tensor

from ..problem import Problem
from ..progress import track
from ..statistics import Sensitivity
from ..units import budget_at, project

_LARGEST_SPREAD = 80.0
"""Nats from 1 down to a number that fp32 still holds in full precision."""


def sensitivity_per_parameter(problem: Problem, statistic: Sensitivity) -> Tensor:
    """The sensitivity of every unit divided by its cost, shape (units,); the method declares the statistic."""
    return problem.statistics[statistic] / problem.inventory.cost_U


def _per_parameter(problem: Problem, statistic: Sensitivity, tokens_NS: Tensor, kept_U: Tensor) -> Tensor:
    """The same of the units that stay, in the model that they are."""
    checkpointing = problem.config.gradient_checkpointing
    gathered = problem.runner.gather([statistic], tokens_NS, kept_U=kept_U, gradient_checkpointing=checkpointing)
    return gathered[statistic] / problem.inventory.cost_U


def annealed_sensitivity(problem: Problem, statistic: Sensitivity, first_U: Tensor, rounds: int) -> Tensor:
    """Sensitivity per parameter measured again and again while the budget shrinks to the problem's; shape (units,).

    Every round cuts what scores lowest and measures the units that stay in the model so left, on its share of the
    statistic sequences; a unit's score is the running mean of its measurements. What is cut does not come back, and
    ends below everything that stays.

    first_U: `sensitivity_per_parameter` of the whole model.  rounds: measurements in all, the first included.
    """
    score_U, kept_U = first_U.clone(), torch.ones(len(first_U), dtype=torch.bool, device="cpu")
    shares = problem.statistic_tokens_NS.tensor_split(rounds)
    for done in track(range(1, rounds), "start", "round"):
        budget = budget_at(problem.budget, problem.inventory.total_cost, 1.0, done / (rounds - 1))
        kept_U = project(_below(score_U, kept_U), problem.inventory, budget).kept_U
        if len(shares[done]):
            again_U = _per_parameter(problem, statistic, shares[done], kept_U)
            score_U = torch.where(kept_U, (score_U + again_U) / 2, score_U)
    return _below(score_U, kept_U)


def _below(score_U: Tensor, kept_U: Tensor) -> Tensor:
    """The scores with those of units that are out below those of all others, in the same order.

    score_U: not negative, finite, fp32.  Where some units are out, what is returned is above 0, so that its logarithms
    are in that order too.
    """
    if kept_U.all():
        return score_U
    lowest, highest = score_U[kept_U].min(), score_U[~kept_U].max()
    lowered_U = score_U if highest < lowest else torch.where(kept_U, score_U, score_U * (lowest / (2 * highest)))
    if lowered_U.min() > 0 and lowered_U[~kept_U].max() < lowest:
        return lowered_U
    return _below_dead_units(score_U, kept_U)


def _below_dead_units(score_U: Tensor, kept_U: Tensor) -> Tensor:
    """`_below` where a unit scores 0, or so little that fp32 holds nothing below it; the highest score becomes 1.

    A dead unit takes half of the smallest score that is not 0. fp64 has room for the product of any two fp32 scores;
    what spreads too far for fp32 after that is drawn together evenly in logarithms.
    """
    score_U = score_U.double()
    positive_P = score_U[score_U > 0]
    score_U = score_U.clamp_min(float(positive_P.min()) / 2 if len(positive_P) else 1.0)
    lowest, highest = score_U[kept_U].min(), score_U[~kept_U].max()
    if highest >= lowest:
        score_U = torch.where(kept_U, score_U, score_U * (lowest / (2 * highest)))
    score_U = score_U / score_U.max()
    spread = -math.log(score_U.min())
    return score_U.pow(min(1.0, _LARGEST_SPREAD / spread)).float()
