"""The floor that every method must beat: units drawn at random, the same share of every layer and kind."""

import torch
from torch import Tensor

from .base import Method, Task
from .registry import register


@register("random")
class Random(Method):
    """A random cut."""

    needs_calibration = False
    allocation = "uniform"

    def score(self, task: Task) -> Tensor:
        """A random number per unit."""
        return torch.rand(task.inventory.num_units, generator=torch.Generator().manual_seed(task.config.seed))
