"""Numbers of the features of a sliced model's maps, taken over to a model that another plan leaves.

Shape suffixes: D features of all maps one after another, columns of a map before its rows.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..execution import Runner
from ..families import linear_at
from ..sharing import Numbers
from ..surgery import feature_indices
from ..units import PruningPlan

Maps = Mapping[str, nn.Linear]
"""Linear maps of a model by path."""

_AXES = {1: "columns", 0: "rows"}
"""Axes of a weight, shape (O, I), in the order in which numbers are held."""

_Places = Mapping[tuple[str, int], Tensor]


def sizes_of(maps: Maps) -> list[int]:
    """Features along both axes of every map: columns, then rows."""
    return [size for linear in maps.values() for size in (linear.in_features, linear.out_features)]


def spread(values_D: Tensor, maps: Maps, dense: Runner, plan: PruningPlan) -> dict[str, Tensor]:
    """Values for all features of the dense maps, by path and axis; 0 for those that the plan cuts.

    values_D, maps: of the model that the plan leaves.
    """
    places, parts = _places(dense, plan), iter(values_D.split(sizes_of(maps)))
    whole: dict[str, Tensor] = {}
    for path in maps:
        for axis, name in _AXES.items():
            values, features = next(parts), _features(dense, path, axis)
            kept = _kept(places, path, axis, features)
            whole[f"{path}.{name}"] = values.new_zeros(features).index_copy(0, kept, values)
    return whole


def taken_over(numbers: Numbers, maps: Maps, dense: Runner, plan: PruningPlan) -> Tensor:
    """Values for the model that a plan leaves, shape (D,).

    numbers: as `spread` returns them, for another plan; 0 stands for a map that is not in them.  maps: of the model.
    """
    places, parts = _places(dense, plan), []
    for path in maps:
        for axis, name in _AXES.items():
            features = _features(dense, path, axis)
            values = numbers.get(f"{path}.{name}", torch.zeros(features, dtype=torch.float32, device="cpu"))
            parts.append(values[_kept(places, path, axis, features)])
    return torch.cat(parts)


def _features(dense: Runner, path: str, axis: int) -> int:
    return linear_at(dense.model, path).weight.shape[axis]


def _places(dense: Runner, plan: PruningPlan) -> _Places:
    """Which features of the dense maps stay, by path and axis, along the axes that units lie along."""
    places: dict[tuple[str, int], Tensor] = {}
    for block in dense.blocks:
        group = plan.group(block.address)
        for slot in block.slots:
            path, _, leaf = slot.parameter.rpartition(".")
            if leaf == "weight":
                features = _features(dense, path, slot.axis)
                places[path, slot.axis] = feature_indices(group.kept, features, group.count, slot.sections)
    return places


def _kept(places: _Places, path: str, axis: int, features: int) -> Tensor:
    """Indices of the features that stay; all along an axis that no unit lies along."""
    return places[path, axis] if (path, axis) in places else torch.arange(features, device="cpu")
