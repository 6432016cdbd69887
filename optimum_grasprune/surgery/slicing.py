"""Cutting units out of weights. Pure tensor code.

Shape suffixes: O output features (rows), I input features (columns), K kept features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..families import Block, Slot, unit_features
from ..units import PruningPlan


def feature_indices(units: Sequence[int], features: int, count: int, sections: Sequence[int] = ()) -> Tensor:
    """Indices of the features that belong to the units, when `features` are split evenly among `count` units.

    units: ascending.  sections: as in `Slot`. Returns shape (K,), int64, ascending, so that what is left of a fused
    projection has its sections in the same order.
    """
    features_UF = unit_features(features, count, sections)
    return features_UF[torch.tensor(list(units), dtype=torch.int64, device="cpu")].flatten().sort().values


def keep_units(tensor: Tensor, slot: Slot, units: Sequence[int], count: int) -> Tensor:
    """What is left of a parameter, a contiguous copy. units: those of `count` that stay, ascending."""
    kept_K = feature_indices(units, tensor.shape[slot.axis], count, slot.sections)
    return tensor.index_select(slot.axis, kept_K.to(tensor.device))


def cut_parameter(name: str, block: Block, plan: PruningPlan, read: Callable[[str], Tensor]) -> Tensor:
    """What the plan leaves of a parameter of a block, a copy. read: gives a parameter by its name."""
    group, tensor = plan.group(block.address), read(name)
    for slot in block.slots:
        if slot.parameter == name:
            tensor = keep_units(tensor, slot, group.kept, group.count)
    return tensor


def parameters_of(block: Block, *, gone: bool) -> list[str]:
    """Names of the parameters that a cut changes: all of a block that is gone, but its output's bias, stays away."""
    return [*dict.fromkeys(slot.parameter for slot in block.slots), *(block.shared if gone else ())]
