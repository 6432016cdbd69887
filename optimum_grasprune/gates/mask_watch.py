"""What the masks of a gate training come to, step by step: how much they keep, and how much of them changes.

Shape suffix: U units.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..execution.trace import KEEP_RATIO
from ..record.curves import CHANGED, KEPT
from ..units import Budget, UnitInventory

_MASK = "mask"


def share_kept(kept_U: Tensor, of_U: Tensor) -> Tensor:
    """Share of some units that a mask keeps, a scalar; both masks of shape (units,), bool, on one device."""
    return (kept_U & of_U).sum() / of_U.sum()


def share_changed(before_U: Tensor, after_U: Tensor, of_U: Tensor) -> Tensor:
    """Share of some units that one mask keeps and the other does not, a scalar; all of shape (units,), bool."""
    return share_kept(before_U ^ after_U, of_U)


class MaskWatch:
    """Sees the mask of every step, and holds it against the one before.

    budget: that steps are taken at.  readings: of the last step, as in `Trainable.readings`.
    """

    def __init__(self, inventory: UnitInventory, budget: Budget) -> None:
        self.inventory = inventory
        self.keep_ratio = torch.tensor(budget.options.keep_ratio, dtype=torch.float32, device="cpu")
        self.readings: dict[str, Tensor] = {}
        self._last_U: Tensor | None = None
        self._of: dict[str, Tensor] = {}

    def see(self, kept_U: Tensor) -> None:
        """The mask of a step. kept_U: shape (units,), bool, wherever it was worked out; it stays there."""
        before_U, self._last_U = self._last_U, kept_U.clone()
        self.readings = {KEEP_RATIO: self.keep_ratio}
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
        """The mask that the next one is held against; see `Trainable.noted`."""
        return {} if self._last_U is None else {_MASK: self._last_U}

    def take_up(self, noted: Mapping[str, Tensor]) -> None:
        """Be as when that was noted, maybe among others."""
        self._last_U = noted.get(_MASK)
