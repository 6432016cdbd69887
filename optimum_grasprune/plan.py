"""A pruning plan: what was kept in every layer, with its scales. It can be saved, and replayed on the base model."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from .errors import PlanError
from .masks import UnitMask
from .units import KIND_LABELS, KINDS, Kind, UnitInventory


@dataclass(frozen=True)
class GroupPlan:
    """One kind of unit in one layer.

    count: units before pruning.  kept: indices of those that stay, ascending.
    scales: one multiplier per kept unit, in the same order, or None for all ones.
    """

    layer: int
    kind: Kind
    count: int
    kept: tuple[int, ...]
    scales: tuple[float, ...] | None = None


@dataclass(frozen=True)
class PruningPlan:
    """All groups of a model, in inventory order.

    source: the file that it was read from, which a checkpoint made by it must not replace.
    """

    groups: tuple[GroupPlan, ...]
    source: Path | None = field(default=None, compare=False, repr=False)

    @classmethod
    def from_mask(cls, mask: UnitMask) -> PruningPlan:
        """The plan that keeps what the mask keeps, unscaled."""
        groups = (
            GroupPlan(group.layer, group.kind, group.count, tuple(mask.kept(group.layer, group.kind)))
            for group in mask.inventory.groups
        )
        return cls(tuple(groups))

    def with_scales(self, scales_K: Tensor) -> PruningPlan:
        """The same plan with one multiplier per kept unit; scales_K: shape (kept units,), in inventory order."""
        values = np.asarray(scales_K.detach().cpu().float().numpy())
        groups, start = [], 0
        for group in self.groups:
            part = values[start : start + len(group.kept)]
            groups.append(replace(group, scales=tuple(float(str(value)) for value in part)))
            start += len(group.kept)
        return PruningPlan(tuple(groups))

    def without_scales(self) -> PruningPlan:
        """The same plan, unscaled."""
        return PruningPlan(tuple(replace(group, scales=None) for group in self.groups))

    def group(self, layer: int, kind: Kind) -> GroupPlan:
        """The plan of one group; KeyError when there is none."""
        return {(group.layer, group.kind): group for group in self.groups}[layer, kind]

    @property
    def num_layers(self) -> int:
        """Number of decoder layers."""
        return 1 + max(group.layer for group in self.groups)

    def check(self, inventory: UnitInventory) -> None:
        """Raise PlanError unless the plan was made for a model with these units."""
        for planned, group in zip(self.groups, inventory.groups, strict=False):
            if (planned.layer, planned.kind, planned.count) != (group.layer, group.kind, group.count):
                wanted, found = f"{planned.count} {KIND_LABELS[planned.kind]}s", f"{group.count}"
                raise PlanError(f"the plan is for {wanted} in layer {planned.layer}; this model has {found}")
        if len(self.groups) != len(inventory.groups):
            layers = len(inventory.groups) // len(KINDS)
            raise PlanError(f"the plan is for {self.num_layers} layers; this model has {layers}")

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON types."""
        return {
            "groups": [
                {
                    "layer": group.layer,
                    "kind": group.kind,
                    "count": group.count,
                    "kept": list(group.kept),
                    "scales": None if group.scales is None else list(group.scales),
                }
                for group in self.groups
            ]
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PruningPlan:
        """The inverse of `to_dict`; PlanError when the values are no plan."""
        try:
            plan = cls(tuple(_group_from_dict(entry) for entry in values["groups"]))
        except (KeyError, TypeError, ValueError) as error:
            raise PlanError(f"not a pruning plan: {error!r}") from None
        if not plan.groups:
            raise PlanError("not a pruning plan: it has no groups")
        return plan


def _group_from_dict(entry: dict[str, Any]) -> GroupPlan:
    kept = tuple(int(unit) for unit in entry["kept"])
    scales = None if entry["scales"] is None else tuple(float(scale) for scale in entry["scales"])
    group = GroupPlan(int(entry["layer"]), entry["kind"], int(entry["count"]), kept, scales)
    where = f"layer {group.layer}, {group.kind}"
    if group.kind not in KINDS:
        raise ValueError(f"unknown kind in {where}")
    if not kept or list(kept) != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= group.count:
        raise ValueError(f"{where}: kept units must be distinct, ascending and below {group.count}")
    if scales is not None and len(scales) != len(kept):
        raise ValueError(f"{where}: {len(kept)} kept units but {len(scales)} scales")
    return group
