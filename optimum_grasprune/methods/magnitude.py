"""Magnitude: units with small weights go. No data at all.

(The group norm of structured magnitude pruning, as in Li et al., arXiv 1608.08710, over every matrix of the unit.)
"""

import torch
from torch import Tensor

from ..families import Coupling
from .base import Method, Task
from .registry import register


@register("magnitude")
class Magnitude(Method):
    """The Euclidean norm of all weights of a unit."""

    source = "arXiv 1608.08710"
    needs_calibration = False
    allocation = "uniform"

    def score(self, task: Task) -> Tensor:
        """‖w‖₂ of every unit, shape (units,)."""
        layers = list(task.family.decoder_layers(task.model))
        return torch.cat(
            [unit_norms(task.family.coupling(layers[g.layer], g.kind), g.count) for g in task.inventory.groups]
        )


def unit_norms(coupling: Coupling, count: int) -> Tensor:
    """‖w‖₂ over the rows and columns of each of `count` units, biases left out; shape (count,), fp32, on the CPU."""
    squares = coupling.output.weight.detach().float().square().sum(0).view(count, -1).sum(1)
    for linear in coupling.inputs:
        squares = squares + linear.weight.detach().float().square().sum(1).view(count, -1).sum(1)
    return squares.sqrt().cpu()
