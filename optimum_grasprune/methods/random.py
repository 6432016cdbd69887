"""The floor that every method must beat: units drawn at random, the same share of every layer and kind."""

import torch
from torch import Tensor

from .base import Method, Task
from .registry import register


@register("random")
class Random(Method):
    """A uniform random cut."""

    needs_calibration = False

    def score(self, task: Task) -> Tensor:
        """Minus each unit's place in a random order of its group, as a fraction of the group."""
        generator = torch.Generator().manual_seed(task.config.seed)
        groups = task.inventory.groups
        return torch.cat([-(torch.randperm(group.count, generator=generator) + 0.5) / group.count for group in groups])
