"""Numbers of the features of a sliced model's maps, among those of the dense model's.

Shape suffixes: D features of all maps one after another, columns of a map before its rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from ..execution import Runner
from ..families import linear_at
from ..surgery import feature_indices
from ..units import PruningPlan

Maps = Mapping[str, nn.Linear]
"""Linear maps of a model by path."""

_AXES = (1, 0)
"""Axes of a weight, shape (O, I), in the order in which numbers are held."""


def sizes_of(maps: Maps) -> list[int]:
    """Features along both axes of every map: columns, then rows."""
    return [size for linear in maps.values() for size in (linear.in_features, linear.out_features)]


def features_in_all(paths: Iterable[str], dense: Runner) -> int:
    """Features of maps of the dense model. paths: of maps that a sliced model has too."""
    return sum(_features(dense, path, axis) for path in paths for axis in _AXES)


def places_in_dense(paths: Iterable[str], dense: Runner, plan: PruningPlan) -> Tensor:
    """Where the features that a plan leaves are among those of the dense maps, shape (D,), int64, on the CPU.

    paths: of the maps, in the order of both.
    """
    kept, places, before = _kept_along(dense, plan), [], 0
    for path in paths:
        for axis in _AXES:
            features = _features(dense, path, axis)
            of_axis = kept.get((path, axis))  # no unit lies along the others
            places.append(before + (torch.arange(features, device="cpu") if of_axis is None else of_axis.cpu()))
            before += features
    return torch.cat(places)


def _features(dense: Runner, path: str, axis: int) -> int:
    return linear_at(dense.model, path).weight.shape[axis]


def _kept_along(dense: Runner, plan: PruningPlan) -> dict[tuple[str, int], Tensor]:
    """Which features of the dense maps stay, by path and axis, along the axes that units lie along."""
    kept: dict[tuple[str, int], Tensor] = {}
    for block in dense.blocks:
        group = plan.group(block.address)
        for slot in block.slots:
            path, _, leaf = slot.parameter.rpartition(".")
            if leaf == "weight":
                features = _features(dense, path, slot.axis)
                kept[path, slot.axis] = feature_indices(group.kept, features, group.count, slot.sections)
    return kept
