"""The prunable units of a model as one flat inventory.  (GRASPrune, arXiv 2604.19398, section 3.1)

Shape suffixes: U units of the whole model, in inventory order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from .kinds import KINDS, UnitKind
from .tables import UnitTables


class Address(NamedTuple):
    """Where a block of units is. number: of the block, where a layer has several of a kind, as experts have."""

    layer: int
    kind: UnitKind
    number: int = 0

    def __str__(self) -> str:
        return f"layer {self.layer} ({self.kind.name})" + (f", block {self.number}" if self.number else "")


@dataclass(frozen=True)
class UnitGroup:
    """All units of one block; they cost the same and are interchangeable for the budget.

    count: number of units.  cost: parameters of one unit, biases included.
    kv_width: elements that one unit adds to the KV cache per token.  number: of the block, as in `Address`.
    """

    layer: int
    kind: UnitKind
    count: int
    cost: int
    kv_width: int = 0
    number: int = 0

    @property
    def address(self) -> Address:
        """Where the block is."""
        return Address(self.layer, self.kind, self.number)


@dataclass(frozen=True)
class UnitInventory:
    """Flat index <-> (address, unit): groups stand one after another, units ascend inside a group."""

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
    def _positions(self) -> dict[Address, int]:
        return {group.address: position for position, group in enumerate(self.groups)}

    @cached_property
    def kinds(self) -> tuple[UnitKind, ...]:
        """The kinds of its units, in the order of `KINDS`."""
        present = {group.kind for group in self.groups}
        return tuple(kind for kind in KINDS.values() if kind in present)

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """The layers that have units, ascending."""
        return tuple(sorted({group.layer for group in self.groups}))

    def slice_of(self, address: Address) -> slice:
        """Flat indices of one group; KeyError when there is no block at the address."""
        position = self._positions[address]
        return slice(self.offsets[position], self.offsets[position + 1])

    def index(self, address: Address, unit: int) -> int:
        """Flat index of a unit."""
        span = self.slice_of(address)
        if not 0 <= unit < span.stop - span.start:
            raise IndexError(f"{address} has {span.stop - span.start} units, no unit {unit}")
        return span.start + unit

    def locate(self, index: int) -> tuple[Address, int]:
        """(address, unit) of a flat index."""
        for group, (start, stop) in zip(self.groups, self.spans(), strict=True):
            if start <= index < stop:
                return group.address, index - start
        raise IndexError(f"the inventory has {self.num_units} units, no index {index}")

    def spans(self) -> Iterator[tuple[int, int]]:
        """(start, stop) of each group."""
        return zip(self.offsets[:-1], self.offsets[1:], strict=True)

    def widths(self, kept_U: Tensor) -> list[int]:
        """How many units of each group stay. kept_U: True for those, shape (units,), bool, on the CPU."""
        return torch.bincount(self.group_U[kept_U], minlength=len(self.groups)).tolist()

    def per_unit(self, values: list[int]) -> Tensor:
        """One value per group spread over its units, shape (units,), int64."""
        counts = torch.tensor([group.count for group in self.groups], device="cpu")
        return torch.repeat_interleave(torch.tensor(values, device="cpu"), counts)

    @cached_property
    def group_U(self) -> Tensor:
        """Position of each unit's group, shape (units,)."""
        return self.per_unit(list(range(len(self.groups))))

    @cached_property
    def is_kind_U(self) -> dict[UnitKind, Tensor]:
        """For each kind, True where a unit is of it, shape (units,), bool."""
        return {kind: self.per_unit([int(group.kind == kind) for group in self.groups]).bool() for kind in self.kinds}

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

    def on(self, device: torch.device) -> UnitTables:
        """What a projection on this device looks up; it is worked out once."""
        if device not in self._tables:
            self._tables[device] = UnitTables.of(self, device)
        return self._tables[device]

    @cached_property
    def _tables(self) -> dict[torch.device, UnitTables]:
        return {}

    def in_blocks(self, steps: tuple[int, ...]) -> UnitInventory:
        """The inventory with so many units of each group taken together as one; what fills no block is left out."""
        if steps not in self._in_blocks:
            self._in_blocks[steps] = UnitInventory(
                tuple(
                    replace(group, count=group.count // step, cost=group.cost * step, kv_width=group.kv_width * step)
                    for group, step in zip(self.groups, steps, strict=True)
                )
            )
        return self._in_blocks[steps]

    @cached_property
    def _in_blocks(self) -> dict[tuple[int, ...], UnitInventory]:
        return {}
