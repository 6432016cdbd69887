"""Training of gates for several budgets at once.

Shape suffixes: N sequences, S sequence, U units.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..config import GRASPConfig
from ..execution import Runner, Teaches
from ..units import Budget
from .train import Snapshot, depths_of, gate_learning_rate, gate_snapshots


def gate_snapshots_at(
    runner: Runner,
    budgets: Sequence[Budget],
    tokens_NS: Tensor,
    config: GRASPConfig,
    start_U: Tensor,
    dense: Teaches | None = None,
) -> Callable[[Budget], list[Snapshot]]:
    """Gate scores that serve several budgets: every step runs the mask of one of them, in turns.

    A score and a slope per unit are trained: s + d · b at a budget whose cut is d deep, from −1 for the smallest cut to
    1 for the deepest, which are projected onto it. A step at one budget is not lost on the others: which units matter
    at a keep ratio of 0.6 tells much about 0.5, but not all. Walking down from the largest budget to the smallest one
    in as many steps was worse by 0.1 to 0.2 nats.

    The training is longer than for one budget, by half the sequences, and goes as far as for the smallest one alone:
    where the configuration sets no learning rate, it is lower by as much.
    budgets: largest first.  tokens_NS, start_U, dense: as in `gate_snapshots`, which this is for one budget. Returns
    what tells, for each of the budgets, what that would return.
    """
    *larger, smallest = budgets
    if larger:
        longer_NS = torch.cat([tokens_NS, tokens_NS[: len(tokens_NS) // 2]])
        if config.learning_rate is None:
            rate = gate_learning_rate(None, smallest.share_cut(runner.inventory)) * len(tokens_NS) / len(longer_NS)
            config = config.model_copy(update={"learning_rate": rate or None})
        tokens_NS = longer_NS
    snapshots = gate_snapshots(runner, smallest, tokens_NS, config, start_U, larger, dense)
    cuts = [budget.share_cut(runner.inventory) for budget in budgets]
    depths = dict(zip(cuts, depths_of(budgets, runner.inventory), strict=True))

    def of_budget(budget: Budget) -> list[Snapshot]:
        depth = depths[budget.share_cut(runner.inventory)]
        return [snapshot.at(depth) for snapshot in snapshots]

    return of_budget
