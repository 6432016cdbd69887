"""An inventory as tensors on one device: all that a projection looks up, worked out once.

Shape suffixes: U units of the whole model, G groups, C codes, R groups of one kind, W units of the widest of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import GraspruneError

if TYPE_CHECKING:
    from .inventory import UnitInventory
    from .kinds import UnitKind

_TIE_BITS = 32
"""A key is 64 bits wide; the upper half is the score."""


@dataclass(frozen=True)
class Rows:
    """The groups of one kind as the rows of a matrix, so that something can be asked of all of them at once.

    groups_R: their positions in the inventory.  units_RW: flat indices of their units; a row that is shorter than the
    widest ends in some unit or other.  outside_RW: True there; None where all rows are equally long.
    """

    kind: UnitKind
    groups_R: Tensor
    units_RW: Tensor
    outside_RW: Tensor | None

    @classmethod
    def of(cls, inventory: UnitInventory, kind: UnitKind) -> Rows:
        """The groups of a kind, on the CPU."""
        positions = [position for position, group in enumerate(inventory.groups) if group.kind == kind]
        counts = [inventory.groups[position].count for position in positions]
        start_R = _whole_numbers([inventory.offsets[position] for position in positions])
        place_W = torch.arange(max(1, *counts), device="cpu")
        units_RW = (start_R[:, None] + place_W).clamp_(max=inventory.num_units - 1)
        outside_RW = None if min(counts) == len(place_W) else place_W >= _whole_numbers(counts)[:, None]
        return cls(kind, _whole_numbers(positions), units_RW, outside_RW)

    def to(self, device: torch.device) -> Rows:
        """The same on a device."""
        outside_RW = None if self.outside_RW is None else self.outside_RW.to(device)
        return Rows(self.kind, self.groups_R.to(device), self.units_RW.to(device), outside_RW)

    def of_units(self, values_U: Tensor, padding: int) -> Tensor:
        """A value of each unit, in rows; shape (R, W)."""
        values_RW = values_U[self.units_RW]
        return values_RW if self.outside_RW is None else values_RW.masked_fill_(self.outside_RW, padding)


@dataclass(frozen=True)
class UnitTables:
    """What is looked up.

    A unit's code says what it costs: units of one code have the same cost and the same share of the KV cache. The last
    code, `free`, is no unit's own, and costs nothing.

    group_U: position of each unit's group.  cell_U: where each unit is in the matrices of `rows`, one after another.
    row_G: likewise, where each group is among their rows.  tie_U: what a key has in its lower half: the place in the
    even order, and below it the code.
    cost_C, kv_width_C: what a unit of each code takes of the two budgets.  codes: how many there are without `free`.
    """

    group_U: Tensor
    cell_U: Tensor
    row_G: Tensor
    tie_U: Tensor
    cost_C: Tensor
    kv_width_C: Tensor
    codes: int
    rows: tuple[Rows, ...]
    _per_group: dict[tuple[int, ...], Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, inventory: UnitInventory, device: torch.device) -> UnitTables:
        """The tables of an inventory. Raises GraspruneError where keys of 64 bits are too short for it."""
        prices = [(group.cost, group.kv_width) for group in inventory.groups]
        codes = {price: code for code, price in enumerate(dict.fromkeys(prices))}
        bits = len(codes).bit_length()
        if inventory.num_units > 1 << (_TIE_BITS - bits):
            raise GraspruneError(f"{inventory.num_units} units of {len(codes)} different costs are too many")
        unused = [(0, 0)] * ((1 << bits) - len(codes))
        cost_C, kv_width_C = _whole_numbers([*codes, *unused]).T.contiguous().to(device)
        rank_U = _inverse([inventory.even_order_U], [None])
        tie_U = rank_U << bits | inventory.per_unit([codes[price] for price in prices])
        rows = [Rows.of(inventory, kind) for kind in inventory.kinds]
        cell_U = _inverse([each.units_RW for each in rows], [each.outside_RW for each in rows])
        row_G = _inverse([each.groups_R for each in rows], [None] * len(rows))
        return cls(
            group_U=inventory.group_U.to(device),
            cell_U=cell_U.to(device),
            row_G=row_G.to(device),
            tie_U=tie_U.to(device),
            cost_C=cost_C,
            kv_width_C=kv_width_C,
            codes=len(codes),
            rows=tuple(each.to(device) for each in rows),
        )

    @property
    def free(self) -> int:
        """The code of what is paid for; as bits all ones, so that it can be laid over any other."""
        return len(self.cost_C) - 1

    def per_group(self, values: tuple[int, ...]) -> Tensor:
        """One value a group, shape (groups,), int64. They stay on the device: a copy would wait for it."""
        if values not in self._per_group:
            self._per_group[values] = _whole_numbers(values).to(self.group_U.device)
        return self._per_group[values]


def _whole_numbers(values: Sequence[Any]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device="cpu")


def _inverse(parts: Sequence[Tensor], outside: Sequence[Tensor | None]) -> Tensor:
    """Where each number stands in the parts, laid out one after another, which hold 0, 1, 2, … in any order.

    outside: True where what a part holds is none of them; None where all are.
    """
    counted = [
        torch.ones(part.shape, dtype=torch.bool, device="cpu") if mask is None else ~mask
        for part, mask in zip(parts, outside, strict=True)
    ]
    places = torch.cat([mask.flatten() for mask in counted]).nonzero()[:, 0]
    inverse = torch.empty_like(places)
    inverse[torch.cat([part.flatten() for part in parts])[places]] = places
    return inverse
