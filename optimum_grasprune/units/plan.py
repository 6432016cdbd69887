"""A pruning plan: what was kept in every layer, with its scales. It can be saved, and replayed on the base model."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import JsonValue
from torch import Tensor

from ..errors import PlanError
from .inventory import Address, UnitInventory
from .kinds import KINDS, UnitKind
from .masks import UnitMask


@dataclass(frozen=True)
class GroupPlan:
    """One block of units.

    count: units before pruning.  kept: indices of those that stay, ascending; none where the whole block goes.
    scales: one multiplier per kept unit, in the same order, or None for all ones.  number: of the block, as in
    `Address`.
    """

    layer: int
    kind: UnitKind
    count: int
    kept: tuple[int, ...]
    scales: tuple[float, ...] | None = None
    number: int = 0

    @property
    def address(self) -> Address:
        """Where the block is."""
        return Address(self.layer, self.kind, self.number)


@dataclass(frozen=True)
class PruningPlan:
    """All groups of a model, in inventory order.

    whole_layers: as in `UnitMask`.
    source: the file that it was read from, which a checkpoint made by it must not replace.
    """

    groups: tuple[GroupPlan, ...]
    whole_layers: bool = False
    source: Path | None = field(default=None, compare=False, repr=False)

    @classmethod
    def from_mask(cls, mask: UnitMask) -> PruningPlan:
        """The plan that keeps what the mask keeps, unscaled."""
        groups = (
            GroupPlan(group.layer, group.kind, group.count, tuple(mask.kept(group.address)), number=group.number)
            for group in mask.inventory.groups
        )
        return cls(tuple(groups), mask.whole_layers)

    def with_scales(self, scales_K: Tensor) -> PruningPlan:
        """The same plan with one multiplier per kept unit; scales_K: shape (kept units,), in inventory order."""
        values = np.asarray(scales_K.detach().cpu().float().numpy())
        groups, start = [], 0
        for group in self.groups:
            part = values[start : start + len(group.kept)]
            groups.append(replace(group, scales=tuple(float(str(value)) for value in part)))
            start += len(group.kept)
        return replace(self, groups=tuple(groups))

    def without_scales(self) -> PruningPlan:
        """The same plan, unscaled."""
        return replace(self, groups=tuple(replace(group, scales=None) for group in self.groups))

    @cached_property
    def _by_address(self) -> dict[Address, GroupPlan]:
        return {group.address: group for group in self.groups}

    def group(self, address: Address) -> GroupPlan:
        """The plan of one group; KeyError when there is none."""
        return self._by_address[address]

    @property
    def num_layers(self) -> int:
        """Number of decoder layers, up to the last one that has units."""
        return 1 + max(group.layer for group in self.groups)

    def check(self, inventory: UnitInventory) -> None:
        """Raise PlanError unless the plan was made for a model with these units."""
        for planned, group in zip(self.groups, inventory.groups, strict=False):
            if planned.address != group.address:
                raise PlanError(
                    f"the plan is for {planned.kind.label}s in {planned.address}; this model has none there"
                )
            if planned.count != group.count:
                wanted, found = f"{planned.count} {planned.kind.label}s", f"{group.count}"
                raise PlanError(f"the plan is for {wanted} in layer {planned.layer}; this model has {found}")
        if len(self.groups) != len(inventory.groups):
            layers = 1 + inventory.layers[-1]
            raise PlanError(f"the plan is for {self.num_layers} layers; this model has {layers}")

    def to_dict(self) -> dict[str, JsonValue]:
        """The plan as JSON types."""
        return {
            **({"whole_layers": True} if self.whole_layers else {}),
            "groups": [
                {
                    "layer": group.layer,
                    "kind": group.kind.name,
                    "count": group.count,
                    "kept": list(group.kept),
                    "scales": None if group.scales is None else list(group.scales),
                    **({"number": group.number} if group.number else {}),
                }
                for group in self.groups
            ],
        }

    @classmethod
    def from_dict(cls, values: Any) -> PruningPlan:
        """The inverse of `to_dict`; PlanError when the values are no plan."""
        try:
            groups = tuple(_group_from_dict(entry) for entry in values["groups"])
            plan = cls(groups, bool(values.get("whole_layers", False)))
        except (KeyError, TypeError, ValueError) as error:
            raise PlanError(f"not a pruning plan: {error!r}") from None
        if not plan.groups:
            raise PlanError("not a pruning plan: it has no groups")
        if plan.whole_layers and any(0 < len(group.kept) < group.count for group in plan.groups):
            raise PlanError("not a pruning plan: it drops whole layers and cuts others")
        return plan


def _group_from_dict(entry: Any) -> GroupPlan:
    kept = tuple(int(unit) for unit in entry["kept"])
    scales = None if entry["scales"] is None else tuple(float(scale) for scale in entry["scales"])
    where = f"layer {entry['layer']}, {entry['kind']}"
    if entry["kind"] not in KINDS:
        raise ValueError(f"unknown kind in {where}")
    number = int(entry.get("number", 0))
    group = GroupPlan(int(entry["layer"]), KINDS[entry["kind"]], int(entry["count"]), kept, scales, number)
    if list(kept) != sorted(set(kept)) or (kept and not 0 <= kept[0] <= kept[-1] < group.count):
        raise ValueError(f"{where}: kept units must be distinct, ascending and below {group.count}")
    if scales is not None and len(scales) != len(kept):
        raise ValueError(f"{where}: {len(kept)} kept units but {len(scales)} scales")
    return group
