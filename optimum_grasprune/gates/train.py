"""Training of gates while the model is fixed.

(GRASPrune, arXiv 2604.19398, section 3.2.) Shape suffixes: N sequences, S sequence, U units.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..config import GRASPConfig
from ..execution import Runner, Training, UnitMultipliers
from ..units import Budget, UnitInventory, UnitMask, budget_at, project
from .straight_through import straight_through


def gate_learning_rate(asked: float | None, cut: float) -> float:
    """AdamW's learning rate for the gate scores: what was asked, else one that grows with the cut.

    cut: share of the parameters, or of the KV cache if that is larger, that has to go. The way that scores travel is
    the rate times the steps. A mild cut needs few changes of the start's order, and the further gates travel beyond
    them, the more they suit the calibration text alone. So it is 1e-2 for a cut of a fifth, 2e-2 for a half, as
    measured, and 2e-2 · (2 · cut)^¾ elsewhere, in two significant digits, so that it can be written down and asked for.
    """
    return float(f"{2e-2 * (2 * cut) ** 0.75:.1e}") if asked is None else asked


def train_gates(
    runner: Runner,
    budget: Budget,
    tokens_NS: Tensor,
    config: GRASPConfig,
    start_U: Tensor | None = None,
    others: Sequence[Budget] = (),
) -> list[Tensor]:
    """Gate scores trained through the hard, budget-feasible mask of every step.  (Section 3.2)

    tokens_NS: calibration sequences, shape (N, S), int64.  start_U: scores at the start, shape (units,); zeros if None,
    and equal scores are kept evenly over layers and kinds.  others: budgets that steps are taken at too, in turns,
    for `train_gates_at`. Returns the scores of `config.snapshots` moments of the
    training, evenly spaced, the final ones last; each of shape (units,), fp32, on the CPU; their projection is a mask.
    """
    inventory = runner.inventory
    start_U = torch.zeros(inventory.num_units, dtype=torch.float32, device="cpu") if start_U is None else start_U
    mask = project(start_U, inventory, budget)
    snapshots: list[Tensor] = []
    turns = in_turn([*others, budget], inventory)

    def multipliers(scores_U: Tensor, progress: float) -> Tensor:
        nonlocal mask
        if progress >= (len(snapshots) + 1) / config.snapshots:
            snapshots.append(scores_U.detach().cpu().clone())
        probabilities_U = torch.sigmoid(scores_U / config.temperature)
        # Projected by score, not by probability: the same order, but no ties where the sigmoid saturates.
        mask = project(
            scores_U, inventory, budget_at(next(turns), inventory.total_cost, config.budget_warmup, progress)
        )
        return straight_through(mask.kept_U.to(scores_U.device), probabilities_U)

    training = Training.of(
        config,
        "gates",
        epochs=config.epochs,
        learning_rate=gate_learning_rate(config.learning_rate, budget.share_cut(inventory)),
    )
    (scores_U,) = runner.learn(UnitMultipliers(start_U, multipliers), tokens_NS, training, status=lambda: _shares(mask))
    return [*snapshots, scores_U]


def in_turn(budgets: Sequence[Budget], inventory: UnitInventory) -> Iterator[Budget]:
    """Budgets without end, each as often as its cut is deep, evenly spread; none that cuts nothing, beside others.

    A deep cut asks for more change, and the deepest has neighbours on one side only.
    (Smooth weighted round-robin: all gain their share at every turn, the richest one is taken and pays for it.)
    """
    cuts = [budget.share_cut(inventory) for budget in budgets]
    shares = [cut / (sum(cuts) or 1.0) for cut in cuts]
    credits = [0.0] * len(budgets)
    while True:
        credits = [credit + share for credit, share in zip(credits, shares, strict=True)]
        turn = max(range(len(budgets)), key=credits.__getitem__)
        credits[turn] -= 1
        yield budgets[turn]


def _shares(mask: UnitMask) -> list[str]:
    return [f"{kind.name} {mask.share(kind):.1%}" for kind in mask.inventory.kinds]
