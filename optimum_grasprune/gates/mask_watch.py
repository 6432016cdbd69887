"""What the masks of a gate training come to, step by step: how much they keep, and how much of them changes.

Shape suffix: U units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..execution.trace import KEEP_RATIO
from ..record.curves import CHANGED, KEPT
from ..units import Budget, UnitInventory

_MASK = "mask."


def share_kept(kept_U: Tensor, of_U: Tensor) -> Tensor:
    """Share of some units that a mask keeps, a scalar; both masks of shape (units,), bool, on one device."""
    return (kept_U & of_U).sum() / of_U.sum()


def share_changed(before_U: Tensor, after_U: Tensor, of_U: Tensor) -> Tensor:
    """Share of some units that one mask keeps and the other does not, a scalar; all of shape (units,), bool."""
    return share_kept(before_U ^ after_U, of_U)


class MaskWatch:
    """Sees the mask of every step. A mask is held against the last one of the same budget.

    budgets: that steps are taken at.  readings: of the last step, as in `Trainable.readings`.
    """

    def __init__(self, inventory: UnitInventory, budgets: Sequence[Budget]) -> None:
        self.inventory, self.budgets = inventory, budgets
        self.readings: dict[str, Tensor] = {}
        self._last: dict[int, Tensor] = {}
        self._of: dict[str, Tensor] = {}

    def see(self, budget: Budget, kept_U: Tensor) -> None:
        """A mask of one of the budgets. kept_U: shape (units,), bool, wherever it was worked out; it stays there."""
        place = next(place for place, each in enumerate(self.budgets) if each is budget)
        before_U, self._last[place] = self._last.get(place), kept_U.clone()
        self.readings = {KEEP_RATIO: torch.tensor(budget.options.keep_ratio, dtype=torch.float32, device="cpu")}
        if not self._of or next(iter(self._of.values())).device != kept_U.device:
            self._of = {kind.name: self.inventory.is_kind_U[kind].to(kept_U.device) for kind in self.inventory.kinds}
        for name, of_U in self._of.items():
            self.readings[KEPT + name] = share_kept(kept_U, of_U)
            self.readings[CHANGED + name] = (
                torch.full((), torch.nan, device=kept_U.device)
                if before_U is None
                else share_changed(before_U.to(kept_U.device), kept_U, of_U)
            )

    def noted(self) -> dict[str, Tensor]:
        """The masks that the next ones are held against; see `Trainable.noted`."""
        return {f"{_MASK}{place}": kept_U for place, kept_U in self._last.items()}

    def take_up(self, noted: Mapping[str, Tensor]) -> None:
        """Be as when those were noted, maybe among others."""
        found = {name.removeprefix(_MASK): kept_U for name, kept_U in noted.items() if name.startswith(_MASK)}
        self._last = {int(place): kept_U for place, kept_U in found.items()}
