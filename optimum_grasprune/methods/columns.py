"""Scores of units from the columns of their output projections and the moments of what enters them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..calibration import Moments, collect_moments
from .base import Task

Metric = Callable[[Tensor, Moments, int], Tensor]
"""From a weight (O, I), the moments of its input and the number of units, to one score per unit, shape (units,)."""


def column_scores(task: Task, metric: Metric) -> Tensor:
    """The metric of every group of units, from one forward pass over the statistic sequences; shape (units,)."""
    modules = task.family.output_projections(task.model)
    moments = collect_moments(task.model, modules, task.statistic_tokens_NS)
    scores = []
    for group in task.inventory.groups:
        key = group.layer, group.kind
        scores.append(metric(modules[key].weight.detach(), moments[key], group.count))
    return torch.cat(scores)
