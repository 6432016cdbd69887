"""The prunable units of a model as one flat inventory.  (GRASPrune, arXiv 2604.19398, section 3.1)

Shape suffixes: U units of the whole model, in inventory order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["ffn", "kv"]
"""`ffn`: an FFN channel.  `kv`: a KV head group, that is one key/value head with the query heads that read it."""

KINDS: tuple[Kind, ...] = ("kv", "ffn")
KIND_LABELS: dict[Kind, str] = {"ffn": "FFN channel", "kv": "KV head group"}


@dataclass(frozen=True)
class UnitGroup:
    """All units of one kind in one layer; they cost the same and are interchangeable for the budget.

    count: number of units.  cost: parameters of one unit, biases included.
    kv_width: key and value elements that one unit adds to the KV cache per token (0 for FFN channels).
    """

    layer: int
    kind: Kind
    count: int
    cost: int
    kv_width: int = 0


@dataclass(frozen=True)
class UnitInventory:
    """Flat index <-> (layer, kind, unit): groups stand one after another, units ascend inside a group."""

    groups: tuple[UnitGroup, ...]

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """First flat index of each group, and the total at the end; shape (groups + 1,)."""
        offsets = [0]
        for group in self.groups:
            offsets.append(offsets[-1] + group.count)
        return tuple(offsets)

    @property
    def num_units(self) -> int:
        """Number of units in the model."""
        return self.offsets[-1]

    @cached_property
    def total_cost(self) -> int:
        """Parameters of all units: the prunable part of the model."""
        return sum(group.count * group.cost for group in self.groups)

    @cached_property
    def total_kv_width(self) -> int:
        """KV-cache elements per token of the whole model."""
        return sum(group.count * group.kv_width for group in self.groups)

    @cached_property
    def _positions(self) -> dict[tuple[int, Kind], int]:
        return {(group.layer, group.kind): position for position, group in enumerate(self.groups)}

    def slice_of(self, layer: int, kind: Kind) -> slice:
        """Flat indices of one group; KeyError when the layer has no unit of that kind."""
        position = self._positions[layer, kind]
        return slice(self.offsets[position], self.offsets[position + 1])

    def index(self, layer: int, kind: Kind, unit: int) -> int:
        """Flat index of a unit."""
        span = self.slice_of(layer, kind)
        if not 0 <= unit < span.stop - span.start:
            raise IndexError(f"layer {layer} has {span.stop - span.start} units of kind {kind}, no unit {unit}")
        return span.start + unit

    def locate(self, index: int) -> tuple[int, Kind, int]:
        """(layer, kind, unit) of a flat index."""
        for group, (start, stop) in zip(self.groups, self.spans(), strict=True):
            if start <= index < stop:
                return group.layer, group.kind, index - start
        raise IndexError(f"the inventory has {self.num_units} units, no index {index}")

    def spans(self) -> Iterator[tuple[int, int]]:
        """(start, stop) of each group."""
        return zip(self.offsets[:-1], self.offsets[1:], strict=True)

    def per_unit(self, values: list[int]) -> Tensor:
        """One value per group spread over its units, shape (units,), int64."""
        counts = torch.tensor([group.count for group in self.groups], device="cpu")
        return torch.repeat_interleave(torch.tensor(values, device="cpu"), counts)

    @cached_property
    def group_U(self) -> Tensor:
        """Position of each unit's group, shape (units,)."""
        return self.per_unit(list(range(len(self.groups))))

    @cached_property
    def is_kind_U(self) -> dict[Kind, Tensor]:
        """For each kind, True where a unit is of it, shape (units,), bool."""
        return {kind: self.per_unit([int(group.kind == kind) for group in self.groups]).bool() for kind in KINDS}

    @cached_property
    def place_U(self) -> Tensor:
        """Position of each unit inside its group, shape (units,)."""
        return torch.arange(self.num_units, device="cpu") - self.per_unit(list(self.offsets[:-1]))

    @cached_property
    def cost_U(self) -> Tensor:
        """Parameters of each unit, shape (units,)."""
        return self.per_unit([group.cost for group in self.groups])

    @cached_property
    def kv_width_U(self) -> Tensor:
        """KV-cache elements per token of each unit, shape (units,)."""
        return self.per_unit([group.kv_width for group in self.groups])

    @cached_property
    def even_order_U(self) -> Tensor:
        """All units, ordered so that any prefix takes nearly the same fraction of every group, shape (units,).

        This is the order in which units with equal scores are kept. A plain sort would break ties by position and
        empty whole layers, which is what the published code does at its first step.
        """
        count_U = self.per_unit([group.count for group in self.groups])
        fraction_U = (self.place_U.double() + 0.5) / count_U
        return torch.argsort(fraction_U, stable=True)
