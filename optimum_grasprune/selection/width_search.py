"""Searching the widths of all layers on the true loss, with the order of units inside each layer fixed.

Forward passes only. (The idea of EvoPress, arXiv 2410.14649: propose a transfer between layers, keep it if the loss
falls; here under the exact budget of `budget.py`, alignment and minimum widths included.)

Shape suffixes: U units of the whole model, N sequences, S sequence.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..execution import Runner
from ..progress import bar
from ..units import Budget, UnitInventory, UnitMask, attends

Widths = tuple[int, ...]
"""Units that stay in each group, in inventory order."""


def widths_of(mask: UnitMask) -> Widths:
    """How many units of each group a mask keeps."""
    return tuple(mask.inventory.widths(mask.kept_U))


def mask_of(
    widths: Widths, scores_U: Tensor, inventory: UnitInventory, multipliers_U: Tensor | None = None
) -> UnitMask:
    """The mask that keeps the highest-scoring units of each group, as many as its width says.

    multipliers_U: those of all units, as in `UnitMask`.
    """
    kept_U = torch.zeros(inventory.num_units, dtype=torch.bool, device="cpu")
    for width, (start, stop) in zip(widths, inventory.spans(), strict=True):
        kept_U[start + scores_U[start:stop].argsort(descending=True, stable=True)[:width]] = True
    return UnitMask(inventory, kept_U, multipliers_U, scores_U=scores_U)


@dataclass(frozen=True)
class Ledger:
    """What widths cost, and what the budget leaves."""

    inventory: UnitInventory
    budget: Budget

    def room(self, widths: Widths) -> tuple[int, int | None]:
        """Parameters and KV-cache elements per token that are left; None without a cap on the KV cache."""
        groups = self.inventory.groups
        cost = self.budget.cost - sum(width * group.cost for width, group in zip(widths, groups, strict=True))
        if self.budget.kv_width is None:
            return cost, None
        kv = sum(width * group.kv_width for width, group in zip(widths, groups, strict=True))
        return cost, self.budget.kv_width - kv

    def fits(self, widths: Widths) -> bool:
        """Whether the widths meet the budget."""
        cost, kv = self.room(widths)
        return cost >= 0 and (kv is None or kv >= 0)

    def step(self, group: int) -> int:
        """Units that a group grows or shrinks by at once."""
        return self.budget.step(self.inventory.groups[group])

    def widest(self, group: int) -> int:
        """Units of a group that may stay."""
        within_U, offsets = self.budget.within_U, self.inventory.offsets
        if within_U is None:
            return self.inventory.groups[group].count
        return int(within_U[offsets[group] : offsets[group + 1]].sum())

    def grown(self, widths: Widths, group: int, steps: int) -> Widths:
        """The group wider by as many of `steps` as there are units and budget for."""
        step, widest = self.step(group), self.widest(group)
        cost, kv = self.room(widths)
        unit = self.inventory.groups[group]
        affordable = [steps, (widest - widths[group]) // step, cost // (step * unit.cost)]
        if kv is not None and unit.kv_width:
            affordable.append(kv // (step * unit.kv_width))
        return _changed(widths, group, step * max(0, min(affordable)))

    def shrunk(self, widths: Widths, group: int, steps: int) -> Widths:
        """The group narrower by as many of `steps` as its smallest width allows."""
        step, least = self.step(group), self.budget.smallest_width(self.inventory.groups[group])
        return _changed(widths, group, -step * max(0, min(steps, (widths[group] - least) // step)))

    def filled(self, widths: Widths, first: int) -> Widths:
        """The widths with whatever still fits, tried in the group `first` and then in the ones after it."""
        groups = len(widths)
        for offset in range(groups):
            widths = self.grown(widths, (first + offset) % groups, self.budget.cost)
        return widths


def _changed(widths: Widths, group: int, by: int) -> Widths:
    return (*widths[:group], widths[group] + by, *widths[group + 1 :])


def transfer(widths: Widths, ledger: Ledger, largest: float, generator: random.Random) -> Widths:
    """Widths after a random transfer of parameters from one group to another; unchanged where none is possible.

    largest: the share of a group that moves at most. The budget is met as before: what the transfer leaves is filled.
    """
    taker, giver = generator.sample(range(len(widths)), 2)
    inventory = ledger.inventory
    count = inventory.groups[taker].count // ledger.step(taker)
    steps = max(1, round(count * largest * generator.random() ** 2))
    needed = steps * ledger.step(taker) * inventory.groups[taker].cost - ledger.room(widths)[0]
    given = -(-needed // (ledger.step(giver) * inventory.groups[giver].cost))
    moved = ledger.grown(ledger.shrunk(widths, giver, max(given, 0)), taker, steps)
    return ledger.filled(moved, taker)


@dataclass(frozen=True)
class SearchLimits:
    """trials: proposals that are measured.  seconds: time after which no new one is; None for no limit."""

    trials: int
    seconds: float | None = None


def search_widths(
    start: Widths,
    ledger: Ledger,
    loss_of: Callable[[Widths], float],
    limits: SearchLimits,
    seed: int,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[Widths, float]:
    """The best widths found and their loss: each trial moves parameters at random and stays where the loss falls.

    The largest transfer shrinks from a quarter of a group to one step over the trials. Deterministic by seed, as long
    as the time limit is not reached. clock: what tells the time, in seconds.
    """
    generator = random.Random(seed)
    with bar(limits.trials, "widths", "trial") as stage:
        best, lowest = start, loss_of(start)
        seen, begun = {start}, 0.0 if limits.seconds is None else clock()
        for trial in range(limits.trials):
            if limits.seconds is not None and clock() - begun > limits.seconds:
                break
            proposal = transfer(best, ledger, 0.25 * (1 - trial / limits.trials), generator)
            if proposal not in seen and attends(proposal, ledger.inventory):
                seen.add(proposal)
                loss = loss_of(proposal)
                if loss < lowest:
                    best, lowest = proposal, loss
            stage.status(f"loss {lowest:.4f}")
            stage.update()
    return best, lowest


class WidthLoss:
    """The loss of a masked model on some sequences: mean next-token loss, in nats.

    tokens_NS: shape (N, S), int64. The units that are out are multiplied by zero, the others by the mask's multipliers;
    no model is built.
    """

    def __init__(self, runner: Runner, tokens_NS: Tensor) -> None:
        self.runner, self.tokens_NS = runner, tokens_NS

    def __call__(self, mask: UnitMask) -> float:
        """Measure a mask."""
        with self.runner.gated() as gates:
            gates.values_U = mask.gates_U
            return self.runner.mean_loss(self.tokens_NS)


def mask_of_best_widths(
    start: Widths,
    scores_U: Tensor,
    loss: WidthLoss,
    budget: Budget,
    limits: SearchLimits,
    seed: int,
    multipliers_U: Tensor | None = None,
) -> UnitMask:
    """The mask of the best widths found from `start`.

    scores_U: order of units inside each group, shape (units,).  multipliers_U: those of all units, as in `UnitMask`.
    """
    inventory = loss.runner.inventory
    ledger, ranked_U = Ledger(inventory, budget), budget.ranked(scores_U)

    def mask(widths: Widths) -> UnitMask:
        return mask_of(widths, ranked_U, inventory, multipliers_U)

    best, _ = search_widths(start, ledger, lambda widths: loss(mask(widths)), limits, seed, loss.runner.clock)
    return mask(best)
