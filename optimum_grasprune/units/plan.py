"""A pruning plan: what was kept in every layer, with its scales. It can be saved, and replayed on the base model."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import JsonValue
from torch import Tensor

from ..errors import PlanError
from .inventory import Address, UnitInventory
from .kinds import FAST_MULTIPLE, FFN, KINDS, UnitKind
from .masks import UnitMask


@dataclass(frozen=True)
class GroupPlan:
    """One block of units.

    count: units before pruning.  kept: indices of those that stay, ascending; none where the whole block
    goes.
    scales: one multiplier per kept unit, in the same order, or None for all ones: what the stage of that name came to.
    number: of the block, as in `Address`.
    multipliers: the like, chosen together with the units. They are folded before anything makes up for the cut.
    """

    layer: int
    kind: UnitKind
    count: int
    kept: tuple[int, ...]
    scales: tuple[float, ...] | None = None
    number: int = 0
    multipliers: tuple[float, ...] | None = None

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
        """The plan that keeps what the mask keeps, with the mask's multipliers, unscaled."""
        groups = (
            GroupPlan(group.layer, group.kind, group.count, tuple(mask.kept(group.address)), number=group.number)
            for group in mask.inventory.groups
        )
        plan = cls(tuple(groups), mask.whole_layers)
        if mask.multipliers_U is None:
            return plan
        parts = plan._parts(mask.multipliers_U[mask.kept_U])
        groups = (replace(group, multipliers=part) for group, part in zip(plan.groups, parts, strict=True))
        return replace(plan, groups=tuple(groups))

    def mask(self, inventory: UnitInventory) -> UnitMask:
        """The mask that keeps what the plan keeps; inventory: of the model that it was made for."""
        kept_U = torch.zeros(inventory.num_units, dtype=torch.bool, device="cpu")
        for group, (start, _) in zip(self.groups, inventory.spans(), strict=True):
            kept_U[start + torch.tensor(group.kept, dtype=torch.int64, device="cpu")] = True
        return UnitMask(inventory, kept_U, whole_layers=self.whole_layers)

    def with_scales(self, scales_K: Tensor) -> PruningPlan:
        """The same plan with one multiplier per kept unit; scales_K: shape (kept units,), in inventory order."""
        parts = self._parts(scales_K)
        groups = (replace(group, scales=part) for group, part in zip(self.groups, parts, strict=True))
        return replace(self, groups=tuple(groups))

    def without_scales(self) -> PruningPlan:
        """The same plan, unscaled."""
        return replace(self, groups=tuple(replace(group, scales=None) for group in self.groups))

    def without_multipliers(self) -> PruningPlan:
        """The same units, as the dense model has them."""
        return replace(self, groups=tuple(replace(group, multipliers=None) for group in self.groups))

    def _parts(self, values_K: Tensor) -> list[tuple[float, ...]]:
        """Values of kept units group by group, as the decimal numbers that are written down for them."""
        values = [float(str(value)) for value in np.asarray(values_K.detach().cpu().float().numpy())]
        stops = list(accumulate(len(group.kept) for group in self.groups))
        return [tuple(values[stop - len(group.kept) : stop]) for stop, group in zip(stops, self.groups, strict=True)]

    @cached_property
    def _by_address(self) -> dict[Address, GroupPlan]:
        return {group.address: group for group in self.groups}

    def group(self, address: Address) -> GroupPlan:
        """The plan of one group; KeyError when there is none."""
        return self._by_address[address]

    @property
    def multiplied(self) -> bool:
        """Whether units have multipliers that were chosen with them."""
        return any(group.multipliers is not None for group in self.groups)

    @property
    def makes_slow_widths(self) -> bool:
        """Whether an FFN has now a width that GPUs are slow at, by `FAST_MULTIPLE`, and had another before."""
        return any(
            len(group.kept) % FAST_MULTIPLE and not group.count % FAST_MULTIPLE
            for group in self.groups
            if group.kind is FFN
        )

    @property
    def num_layers(self) -> int:
        """Number of decoder layers, up to the last one that has units."""
        return 1 + max(group.layer for group in self.groups)

    def check(self, inventory: UnitInventory) -> None:
        """Raise PlanError unless the plan was made for a model with these units, and leaves some attention."""
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
        if inventory.total_kv_width and not any(group.kept and group.kind.cached_vectors for group in self.groups):
            raise PlanError("the plan leaves no attention in any layer: such a model sees one token at a time")

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
                    **({} if group.multipliers is None else {"multipliers": list(group.multipliers)}),
                }
                for group in self.groups
            ],
        }

    @classmethod
    def from_dict(cls, values: Any) -> PruningPlan:
        """The inverse of `to_dict`; PlanError when the values are no plan."""
        try:
            groups = tuple(_group_from_dict(entry) for entry in values["groups"])
            if not isinstance(whole_layers := values.get("whole_layers", False), bool):
                raise ValueError("whole_layers should be true or false")
            plan = cls(groups, whole_layers)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise PlanError(f"not a pruning plan: {error!r}") from None
        if not plan.groups:
            raise PlanError("not a pruning plan: it has no groups")
        if plan.whole_layers and any(0 < len(group.kept) < group.count for group in plan.groups):
            raise PlanError("not a pruning plan: it drops whole layers and cuts others")
        return plan


def _group_from_dict(entry: Any) -> GroupPlan:
    kept = tuple(_whole(unit, "a kept unit") for unit in entry["kept"])
    scales, multipliers = _numbers(entry["scales"]), _numbers(entry.get("multipliers"))
    where = f"layer {entry['layer']}, {entry['kind']}"
    if entry["kind"] not in KINDS:
        raise ValueError(f"unknown kind in {where}")
    layer, count = (_whole(entry[name], name) for name in ("layer", "count"))
    number = _whole(entry.get("number", 0), "number")
    group = GroupPlan(layer, KINDS[entry["kind"]], count, kept, scales, number, multipliers)
    if list(kept) != sorted(set(kept)) or (kept and not 0 <= kept[0] <= kept[-1] < group.count):
        raise ValueError(f"{where}: kept units must be distinct, ascending and below {group.count}")
    for name, values in {"scales": scales, "multipliers": multipliers}.items():
        if values is not None and len(values) != len(kept):
            raise ValueError(f"{where}: {len(kept)} kept units but {len(values)} {name}")
    return group


def _whole(value: Any, what: str) -> int:
    """A number that counts something; whatever else could be made into one was never written by us."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{what} should be a whole number, not {value!r:.40}")
    return value


def _numbers(values: Any) -> tuple[float, ...] | None:
    if values is None:
        return None
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in values):
        raise ValueError("scales and multipliers should be numbers")
    if not all(map(math.isfinite, numbers := tuple(map(float, values)))):
        raise ValueError("scales and multipliers should be finite")
    return numbers
