"""Training of gates for several budgets at once.

Shape suffixes: N sequences, S sequence, U units.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..config import GRASPConfig
from ..execution import Runner
from ..units import Budget
from .train import train_gates


def train_gates_at(
    runner: Runner, budgets: Sequence[Budget], tokens_NS: Tensor, config: GRASPConfig, start_U: Tensor
) -> list[Tensor]:
    """Gate scores that serve several budgets: every step runs the mask of one of them, in random turns.

    One vector of scores is trained, whose projection onto each budget is its mask. Steps at other budgets are not lost
    on a budget: which units matter at a keep ratio of 0.6 tells much about 0.5. Walking down from the largest budget to
    the smallest one instead, with as many steps at each, was 0.1 nats worse.

    budgets: largest first; the learning rate follows the last one, which asks for the most change. No step is taken at
    one that cuts nothing.
    tokens_NS, start_U: as in `train_gates`. For more than one budget the training is longer, by half the sequences.
    Returns what `train_gates` returns.
    """
    *larger, smallest = budgets
    larger = [budget for budget in larger if budget.share_cut(runner.inventory)]
    if larger:
        tokens_NS = torch.cat([tokens_NS, tokens_NS[: len(tokens_NS) // 2]])
    return train_gates(runner, smallest, tokens_NS, config, start_U, larger)
