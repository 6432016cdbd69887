"""Training of gates for several budgets at once.

Shape suffixes: N sequences, S sequence, U units.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..config import GRASPConfig
from ..execution import Runner, Teaches, following
from ..units import Budget, UnitInventory
from .train import Gates, Snapshot, gate_learning_rate, gate_snapshots, trained_moments

POWER = 0.25
"""How scores travel with the cut: at a mild one too most of their order is that of the deepest, whose training knows
what kinds of units are worth beside each other. Nearer to the start, masks larger than the deepest were worse."""


def gate_snapshots_at(
    runner: Runner,
    budgets: Sequence[Budget],
    tokens_NS: Tensor,
    config: GRASPConfig,
    start_U: Tensor,
    dense: Teaches | None = None,
) -> Callable[[Budget], list[Snapshot]]:
    """Gate scores that serve several budgets: the smallest has what a run of its own gives, the others start from that.

    Theirs are start + s · (a + (s − s̄) · b), s as in `execution.following`: a, at first how far those of the smallest
    have come, and b, at first 0, are trained on half the sequences, each step with the mask of one of the budgets, in
    turns. A step at one of them is not lost on the others: which units matter at a keep ratio of 0.7 tells much about
    0.6, but not all. Walking down from the largest budget to the smallest one was worse by 0.1 to 0.2 nats.

    budgets: largest first.  tokens_NS, start_U, dense: as in `gate_snapshots`, which this is for one budget. Returns
    what tells, for each of the budgets, what that would return.
    """
    *larger, smallest = budgets
    own = gate_snapshots(runner, smallest, tokens_NS, config, start_U, dense)
    if not larger:
        return lambda budget: own
    gates = _Beside(runner.inventory, larger, config, start_U, smallest, own[-1])
    moments = trained_moments(runner, gates, tokens_NS[: of_the_others(len(tokens_NS))], dense)
    # As many as the smallest has, since what is chosen there is taken here: half the steps may be too few for that.
    moments = [*[moments[0]] * (len(own) - len(moments)), *moments]

    def of_budget(budget: Budget) -> list[Snapshot]:
        # Nesting leaves a budget's limits, by which budgets are equal.
        return own if budget == smallest else [gates.snapshot(moment, budget) for moment in moments]

    return of_budget


def of_the_others(sequences: int) -> int:
    """The sequences that gates of all larger budgets are trained on: half of those of the smallest one, the first."""
    return -(-sequences // 2)


class _Beside(Gates):
    """Gates of budgets beside the smallest one. start_U: what that started from.  deepest: what it came to."""

    def __init__(
        self,
        inventory: UnitInventory,
        budgets: Sequence[Budget],
        config: GRASPConfig,
        start_U: Tensor,
        smallest: Budget,
        deepest: Snapshot,
    ) -> None:
        deepest_cut = smallest.share_cut(inventory)
        cuts = [budget.share_cut(inventory) for budget in budgets]
        # What a budget shrinks through before it is there has been gone through.
        at_once = config.model_copy(update={"budget_warmup": 0.0})
        super().__init__(inventory, budgets, at_once, start_U, gate_learning_rate(config.learning_rate, deepest_cut))
        self.deepest, self.following = deepest, following(cuts, deepest_cut, POWER)

    def start(self) -> Sequence[Tensor]:
        """Both a and b and, if asked for, g of the smallest."""
        level_U, multipliers_U = self.deepest.scores_U - self.start_U, self.deepest.multipliers_U
        besides = () if multipliers_U is None else (multipliers_U - 1,)
        return (level_U, torch.zeros_like(level_U), *besides)

    def scores(self, numbers: Sequence[Tensor], budget: Budget) -> Tensor:
        """See `Gates.scores`."""
        level_U, bend_U = numbers
        place = self.budgets.index(budget)
        return self.start_U.to(level_U.device) + self.following[place].of(level_U, bend_U)
