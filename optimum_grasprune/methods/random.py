"""The floor that every method must beat: units drawn at random, the same share of every layer and kind."""

import torch
from torch import Tensor

from ..problem import Problem
from .base import Method
from .registry import register


@register("random")
class Random(Method):
    """A random cut."""

    needs_calibration = False
    allocation = "uniform"

    def score(self, problem: Problem) -> Tensor:
        """A random number per unit."""
        return torch.rand(problem.inventory.num_units, generator=torch.Generator().manual_seed(problem.config.seed))
