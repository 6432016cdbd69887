"""Magnitude: units with small weights go. No data at all.

(The group norm of structured magnitude pruning, as in Li et al., arXiv 1608.08710, over every matrix of the unit.)
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..families import Slot, unit_features
from ..problem import Problem
from .base import Method
from .registry import register


@register("magnitude")
class Magnitude(Method):
    """The Euclidean norm of all weights of a unit."""

    source = "arXiv 1608.08710"
    needs_calibration = False
    allocation = "uniform"

    def score(self, problem: Problem) -> Tensor:
        """‖w‖₂ of every unit, shape (units,)."""
        runner = problem.runner
        return torch.cat(
            [
                unit_norms(
                    {slot.parameter: runner.parameter(slot.parameter) for slot in block.slots},
                    block.slots,
                    block.units.count,
                )
                for block in runner.blocks
            ]
        )


def unit_norms(parameters: Mapping[str, Tensor], slots: Sequence[Slot], count: int) -> Tensor:
    """‖w‖₂ over all weights of each of `count` units, biases left out; shape (count,), fp32, on the CPU.

    parameters: by name, those of the slots among them.
    """
    squares_U = torch.zeros(count, device="cpu")
    for slot in (slots[-1], *slots[:-1]):
        weight = parameters[slot.parameter]
        if weight.ndim > 1:
            along_F = weight.float().square().sum([axis for axis in range(weight.ndim) if axis != slot.axis]).cpu()
            squares_U = squares_U + along_F[unit_features(len(along_F), count, slot.sections)].sum(1)
    return squares_U.sqrt()
