"""What a method returns: which units stay, or which single weights.

Shape suffixes: U units of the whole model, in inventory order; O, I rows and columns of a weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from .inventory import Address, UnitInventory
from .kinds import UnitKind


@dataclass(frozen=True)
class UnitMask:
    """A choice of units.

    kept_U: True where the unit stays, shape (units,), bool, on the CPU.
    multipliers_U: what the units that stay are multiplied by, shape (units,), fp32, on the CPU; None for all ones.
    Those of the others count for nothing.
    whole_layers: whether a layer without units goes as a whole, with its norms and biases; the others keep all of them.
    scores_U: what the units were chosen by, shape (units,), on the CPU, for reports; None where that is not known.
    """

    inventory: UnitInventory
    kept_U: Tensor
    multipliers_U: Tensor | None = None
    whole_layers: bool = False
    scores_U: Tensor | None = None

    @property
    def gates_U(self) -> Tensor:
        """What the units of the whole model are multiplied by to be those of the cut one, shape (units,)."""
        return self.kept_U if self.multipliers_U is None else self.kept_U * self.multipliers_U

    def kept(self, address: Address) -> list[int]:
        """Indices, inside their group, of the units that stay; ascending."""
        return self.kept_U[self.inventory.slice_of(address)].nonzero().flatten().tolist()

    @property
    def kept_cost(self) -> int:
        """Parameters of the units that stay."""
        return int(self.inventory.cost_U[self.kept_U].sum())

    @property
    def kept_kv_width(self) -> int:
        """KV-cache elements per token of the units that stay."""
        return int(self.inventory.kv_width_U[self.kept_U].sum())

    def share(self, kind: UnitKind) -> float:
        """Fraction of the units of one kind that stay, between 0 and 1."""
        return float(self.kept_U[self.inventory.is_kind_U[kind]].double().mean())


@dataclass(frozen=True)
class ElementMask:
    """A choice of single weights. kept: True where the weight stays, (O, I), bool, by the module's path."""

    kept: Mapping[str, Tensor]

    @property
    def total(self) -> int:
        """Weights that could have been cut."""
        return sum(mask_OI.numel() for mask_OI in self.kept.values())

    @property
    def kept_count(self) -> int:
        """Weights that stay."""
        return sum(int(mask_OI.sum()) for mask_OI in self.kept.values())
