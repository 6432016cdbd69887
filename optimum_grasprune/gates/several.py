"""Gates for several budgets from one training.

Shape suffixes: N sequences, S sequence, U units.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from ..config import GRASPConfig
from ..execution import Runner, Teaches, strength
from ..units import Budget
from .train import Snapshot, gate_snapshots

POWER = 0.25
"""How gates travel with the cut: at a mild one too most of their order is that of the deepest, whose training knows
what kinds of units are worth beside each other. Nearer to the start, masks larger than the deepest were worse."""


def gate_snapshots_at(
    runner: Runner,
    budgets: Sequence[Budget],
    tokens_NS: Tensor,
    config: GRASPConfig,
    start_U: Tensor,
    dense: Teaches | None = None,
) -> Callable[[Budget], list[Snapshot]]:
    """Gates that serve several budgets: the smallest has what a run of its own gives, the others what lies before that.

    They have start + s · (scores − start), and multipliers 1 + s · (γ − 1), s as in `execution.strength`. Steps for
    them on top, half as many again, gave no better models where the smallest budget keeps a half.

    budgets: largest first.  tokens_NS, start_U, dense: as in `gate_snapshots`, which this is for one budget. Returns
    what tells, for each of the budgets, what that would return.
    """
    *_, smallest = budgets
    own = gate_snapshots(runner, smallest, tokens_NS, config, start_U, dense)
    deepest_cut = smallest.share_cut(runner.inventory)

    def of_budget(budget: Budget) -> list[Snapshot]:
        # Nesting leaves a budget's limits, by which budgets are equal.
        if budget == smallest:
            return own
        travelled = strength(budget.share_cut(runner.inventory), deepest_cut, POWER)
        return [snapshot.on_its_way(start_U, travelled) for snapshot in own]

    return of_budget
