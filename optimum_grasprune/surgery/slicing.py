"""Cutting units out of weight matrices. Pure tensor code.

Shape suffixes: O output features (rows), I input features (columns), K kept features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..families import Family
from ..plan import GroupPlan, PruningPlan


def feature_indices(units: Sequence[int], features: int, count: int) -> Tensor:
    """Indices of the features that belong to the units, when `features` are split evenly among `count` units.

    Returns shape (len(units) * features / count,), int64, in the order of `units`.
    """
    width = features // count
    return (torch.tensor(list(units), device="cpu")[:, None] * width + torch.arange(width, device="cpu")).flatten()


def kept_columns(group: GroupPlan, linear: nn.Linear) -> Tensor:
    """Indices of the columns of a dense output projection that a group keeps, shape (K,), on the weight's device."""
    return feature_indices(group.kept, linear.in_features, group.count).to(linear.weight.device)


def keep_rows(tensor: Tensor, units: Sequence[int], count: int) -> Tensor:
    """Rows of the kept units, of a weight (O, I) or of a bias (O,); a copy."""
    return tensor[feature_indices(units, tensor.shape[0], count).to(tensor.device)]


def keep_columns(weight_OI: Tensor, units: Sequence[int], count: int) -> Tensor:
    """Columns of the kept units, shape (O, K); a contiguous copy."""
    return weight_OI[:, feature_indices(units, weight_OI.shape[1], count).to(weight_OI.device)].contiguous()


def slice_state(state: Mapping[str, Tensor], plan: PruningPlan, family: Family) -> dict[str, Tensor]:
    """A model's tensors with the plan's cuts made; tensors that no unit runs through are shared, not copied."""
    sliced = dict(state)
    for group in plan.groups:
        _slice_group(sliced, group, family)
    return sliced


def _slice_group(state: dict[str, Tensor], group: GroupPlan, family: Family) -> None:
    for path in family.input_paths(group.layer, group.kind):
        for name in (f"{path}.weight", f"{path}.bias"):
            if name in state:
                state[name] = keep_rows(state[name], group.kept, group.count)
    name = f"{family.output_path(group.layer, group.kind)}.weight"
    state[name] = keep_columns(state[name], group.kept, group.count)
