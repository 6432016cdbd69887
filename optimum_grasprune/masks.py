"""What a method returns: which units stay.

Shape suffixes: U units of the whole model, in inventory order.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .units import Kind, UnitInventory


@dataclass(frozen=True)
class UnitMask:
    """A choice of units. kept_U: True where the unit stays, shape (units,), bool, on the CPU."""

    inventory: UnitInventory
    kept_U: Tensor

    def kept(self, layer: int, kind: Kind) -> list[int]:
        """Indices, inside their group, of the units that stay; ascending."""
        return self.kept_U[self.inventory.slice_of(layer, kind)].nonzero().flatten().tolist()

    @property
    def kept_cost(self) -> int:
        """Parameters of the units that stay."""
        return int(self.inventory.cost_U[self.kept_U].sum())

    @property
    def kept_kv_width(self) -> int:
        """KV-cache elements per token of the units that stay."""
        return int(self.inventory.kv_width_U[self.kept_U].sum())

    def share(self, kind: Kind) -> float:
        """Fraction of the units of one kind that stay, between 0 and 1."""
        return float(self.kept_U[self.inventory.is_kind_U[kind]].double().mean())
