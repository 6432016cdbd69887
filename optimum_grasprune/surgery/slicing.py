"""Cutting units out of weights. Pure tensor code.

Shape suffixes: O output features (rows), I input features (columns), K kept features.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

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


def slice_state(state: Mapping[str, Tensor], plan: PruningPlan, blocks: Iterable[Block]) -> dict[str, Tensor]:
    """A model's tensors with the plan's cuts made; tensors that no unit runs through are shared, not copied."""
    sliced = dict(state)
    for block in blocks:
        group = plan.group(block.address)
        if not group.kept:  # all of it goes but its output's bias, which is what it puts out without its units
            for name in (*(slot.parameter for slot in block.slots), *block.shared):
                del sliced[name]
            continue
        for slot in block.slots:
            sliced[slot.parameter] = keep_units(sliced[slot.parameter], slot, group.kept, group.count)
    return sliced
