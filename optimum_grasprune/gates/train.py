"""Training of gates while the model is fixed.

(GRASPrune, arXiv 2604.19398, section 3.2.) Shape suffixes: N sequences, S sequence, U units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..config import GRASPConfig
from ..execution import OfUnits, Pace, Runner, Teaches, Training
from ..execution.training import rate_for_cut
from ..units import Budget, UnitInventory, UnitMask, budget_at, kept_units, project
from .mask_watch import MaskWatch
from .straight_through import straight_through


def gate_learning_rate(asked: float | None, cut: float) -> float:
    """AdamW's learning rate for the gate scores: what was asked, else 1e-2 for a cut of a fifth, 2e-2 for a half.

    cut: share of the parameters, or of the KV cache if that is larger, that has to go; see `rate_for_cut`.
    """
    return rate_for_cut(2e-2, cut) if asked is None else asked


def gate_kl_weight(cut: float) -> float:
    """What `kl_weight=None` is for gates: 0 up to a cut of a fifth, from there in a straight line to 0.25 for a half.

    cut: as in `gate_learning_rate`. Where little goes, the text alone says best what it needs; where much does, a mask
    that suits what the dense model predicts suits other text better too.
    """
    return round(min(0.5, max(0.0, (cut - 0.2) / 1.2)), 2)


def teacher_share(config: GRASPConfig, cut: float) -> float:
    """The teacher's share for gates: what was asked for them, else for all that is trained, else `gate_kl_weight`."""
    asked = config.kl_weight if config.gate_kl_weight is None else config.gate_kl_weight
    return gate_kl_weight(cut) if asked is None else asked


_MOMENT = "moment."


@dataclass(frozen=True)
class Snapshot:
    """Gates at one moment of their training, on the CPU.

    scores_U: their projection is a mask, shape (units,), fp32.  multipliers_U: what the units that stay are multiplied
    by, shape (units,), fp32; None where nothing but scores was trained.
    """

    scores_U: Tensor
    multipliers_U: Tensor | None = None

    def on_its_way(self, start_U: Tensor, travelled: float) -> Snapshot:
        """The gates between the start and this moment. start_U: scores there.  travelled: share of the way."""
        multipliers_U = None if self.multipliers_U is None else 1 + travelled * (self.multipliers_U - 1)
        return Snapshot(start_U + travelled * (self.scores_U - start_U), multipliers_U)

    def mask(self, inventory: UnitInventory, budget: Budget) -> UnitMask:
        """The units that stay within the budget, with their multipliers."""
        kept_U = project(self.scores_U, inventory, budget).kept_U
        return UnitMask(inventory, kept_U, self.multipliers_U, scores_U=self.scores_U)


def train_gates(
    runner: Runner, budget: Budget, tokens_NS: Tensor, config: GRASPConfig, start_U: Tensor | None = None
) -> list[Tensor]:
    """Gate scores trained through the hard, budget-feasible mask of every step.  (Section 3.2)

    tokens_NS: calibration sequences, shape (N, S), int64.  start_U: scores at the start, shape (units,); zeros if None,
    and equal scores are kept evenly over layers and kinds. Returns the scores of `config.snapshots` moments of the
    training, evenly spaced, the final ones last; each of shape (units,), fp32, on the CPU; their projection is a mask.
    """
    return [snapshot.scores_U for snapshot in gate_snapshots(runner, budget, tokens_NS, config, start_U)]


def gate_snapshots(
    runner: Runner,
    budget: Budget,
    tokens_NS: Tensor,
    config: GRASPConfig,
    start_U: Tensor | None = None,
    dense: Teaches | None = None,
) -> list[Snapshot]:
    """`train_gates` with the multipliers, where `config.multipliers` asks for any.

    dense: the teacher; the model itself, as it is without gates, if None.
    """
    if start_U is None:
        start_U = torch.zeros(runner.inventory.num_units, dtype=torch.float32, device="cpu")
    cut = budget.share_cut(runner.inventory)
    gates = Gates(runner.inventory, budget, config, start_U, gate_learning_rate(config.learning_rate, cut))
    training = Training.of(config, "gates", epochs=config.epochs, learning_rate=gates.rate)
    training = replace(training, kl_weight=teacher_share(config, cut))
    numbers = runner.learn(gates, tokens_NS, training, dense, status=gates.shares)
    return [gates.snapshot(moment) for moment in (*gates.moments, _at_rest(numbers))]


def _at_rest(numbers: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(number.detach().cpu().clone() for number in numbers)


class Gates(OfUnits):
    """A score per unit and, if asked for, g: z = m ⊙ (1 + g), m the mask with the straight-through gradient.

    rate: learning rate of the scores.  mask: of the last step, where the scores are.  moments: what the numbers were
    when a snapshot was due.
    """

    def __init__(
        self, inventory: UnitInventory, budget: Budget, config: GRASPConfig, start_U: Tensor, rate: float
    ) -> None:
        self.inventory, self.config, self.start_U, self.rate = inventory, config, start_U, rate
        self.budget, self.joint = budget, config.multipliers == "joint"
        self.mask = project(start_U, inventory, budget)
        self.watch = MaskWatch(inventory, budget)
        self.moments: list[tuple[Tensor, ...]] = []

    def start(self) -> Sequence[Tensor]:
        """Scores and, if asked for, g."""
        return (self.start_U, torch.zeros_like(self.start_U)) if self.joint else (self.start_U,)

    def paces(self) -> Sequence[Pace]:
        """See `Trainable.paces`."""
        # Without a cut the rate of the scores is 0, and so is that of the multipliers: nothing has to be made up for.
        factor = self.config.multiplier_learning_rate / self.rate if self.rate else 1.0
        first = self.start()
        return [Pace(factor) if self.joint and number is first[-1] else Pace() for number in first]

    def snapshot(self, numbers: Sequence[Tensor]) -> Snapshot:
        """What the numbers come to: g as the multipliers 1 + g."""
        return Snapshot(numbers[0], 1 + numbers[-1] if self.joint else None)

    def values(self, numbers: Sequence[Tensor], progress: float) -> Tensor:
        """See `OfUnits.values`."""
        if progress >= (len(self.moments) + 1) / self.config.snapshots:
            self.moments.append(_at_rest(numbers))
        scores_U = numbers[0]
        probabilities_U = torch.sigmoid(scores_U / self.config.temperature)
        whole, warmup = self.inventory.total_cost, self.config.budget_warmup
        # Projected by score, not by probability: the same order, but no ties where the sigmoid saturates.
        # Scores that are NaN make the loss so, which ends the training.
        kept_U = kept_units(scores_U.detach(), self.inventory, budget_at(self.budget, whole, warmup, progress))
        self.mask = UnitMask(self.inventory, kept_U)
        self.watch.see(kept_U)
        gates_U = straight_through(kept_U, probabilities_U)
        return gates_U * (1 + numbers[-1]) if self.joint else gates_U

    def readings(self) -> Mapping[str, Tensor]:
        """See `Trainable.readings`."""
        return self.watch.readings

    def noted(self) -> dict[str, Tensor]:
        """See `Trainable.noted`."""
        taken = {
            f"{_MOMENT}{moment}.{place}": number
            for moment, numbers in enumerate(self.moments)
            for place, number in enumerate(numbers)
        }
        return {**taken, **self.watch.noted()}

    def take_up(self, noted: Mapping[str, Tensor]) -> None:
        """See `Trainable.take_up`."""
        each = len(self.start())
        taken = sum(name.startswith(_MOMENT) for name in noted) // each
        self.moments = [tuple(noted[f"{_MOMENT}{moment}.{place}"] for place in range(each)) for moment in range(taken)]
        self.watch.take_up(noted)

    def shares(self) -> list[str]:
        """How much of each kind is in the model, for the bar."""
        mask = UnitMask(self.inventory, self.mask.kept_U.cpu())
        return [f"{kind.name} {mask.share(kind):.1%}" for kind in self.inventory.kinds]
