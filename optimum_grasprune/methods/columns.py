"""Scores of units from the columns of their output projections and the moments of what enters them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..problem import Problem
from ..statistics import MOMENTS, Moments

Metric = Callable[[Tensor, Moments, int], Tensor]
"""From a weight (O, I), the moments of its input and the number of units, to one score per unit, shape (units,)."""


def column_scores(problem: Problem, metric: Metric) -> Tensor:
    """The metric of every block of units, shape (units,); the method declares `MOMENTS`."""
    moments = problem.statistics[MOMENTS]
    return torch.cat(
        [
            metric(problem.runner.parameter(f"{block.output}.weight"), moments[block.output], block.units.count)
            for block in problem.runner.blocks
        ]
    )
