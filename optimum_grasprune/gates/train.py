"""Training of gates while the model is fixed.

(GRASPrune, arXiv 2604.19398, section 3.2.) Shape suffixes: N sequences, S sequence, U units.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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


@dataclass(frozen=True)
class Snapshot:
    """Gates at one moment of their training, on the CPU.

    scores_U: their projection is a mask, shape (units,), fp32.  multipliers_U: what the units that stay are multiplied
    by, shape (units,), fp32; None where nothing but scores was trained.  slopes_U: what is added to the scores for each
    unit of depth, shape (units,), fp32; None where they were trained at one budget.
    """

    scores_U: Tensor
    multipliers_U: Tensor | None = None
    slopes_U: Tensor | None = None

    def at(self, depth: float) -> Snapshot:
        """The gates of one of several budgets. depth: of its cut, see `depths_of`."""
        return Snapshot(scores_at(self.scores_U, self.slopes_U, depth), self.multipliers_U)

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
    others: Sequence[Budget] = (),
    dense: Teaches | None = None,
) -> list[Snapshot]:
    """`train_gates` with the multipliers, where `config.multipliers` asks for any.

    others: budgets that steps are taken at too, in turns, for `gate_snapshots_at`.
    dense: the teacher; the model itself, as it is without gates, if None.
    """
    if start_U is None:
        start_U = torch.zeros(runner.inventory.num_units, dtype=torch.float32, device="cpu")
    cut = budget.share_cut(runner.inventory)
    rate = gate_learning_rate(config.learning_rate, cut)
    gates = _Gates(runner.inventory, [*others, budget], config, start_U, rate)
    training = Training.of(config, "gates", epochs=config.epochs, learning_rate=rate)
    training = replace(training, kl_weight=teacher_share(config, cut))
    numbers = runner.learn(gates, tokens_NS, training, dense, status=gates.shares)
    return [*gates.snapshots, gates.snapshot(numbers)]


def depths_of(budgets: Sequence[Budget], inventory: UnitInventory) -> list[float]:
    """Where the cut of each lies between the smallest cut, −1, and the deepest, 1; 0 where they are all alike."""
    cuts = [budget.share_cut(inventory) for budget in budgets]
    middle, reach = (max(cuts) + min(cuts)) / 2, (max(cuts) - min(cuts)) / 2
    return [(cut - middle) / reach if reach else 0.0 for cut in cuts]


def scores_at(scores_U: Tensor, slopes_U: Tensor | None, depth: float) -> Tensor:
    """What the scores are for a cut of some depth, shape (units,)."""
    return scores_U if slopes_U is None else scores_U + depth * slopes_U


class _Gates(OfUnits):
    """A score per unit and, if asked for, g: z = m ⊙ (1 + g), m the mask with the straight-through gradient.

    At several budgets a slope per unit besides: which units are worth most is another question where more is gone.

    budgets: those that steps are taken at, in turns.  rate: learning rate of the scores.
    mask: of the last step, where the scores are.  snapshots: those of the moments that have passed.
    """

    def __init__(
        self, inventory: UnitInventory, budgets: Sequence[Budget], config: GRASPConfig, start_U: Tensor, rate: float
    ) -> None:
        self.inventory, self.config, self.start_U, self.rate = inventory, config, start_U, rate
        self.joint, self.several = config.multipliers == "joint", len(budgets) > 1
        self.turns = in_turn(budgets, inventory)
        self.depths = {id(each): depth for each, depth in zip(budgets, depths_of(budgets, inventory), strict=True)}
        self.mask = project(start_U, inventory, budgets[-1])
        self.watch = MaskWatch(inventory, budgets)
        self.snapshots: list[Snapshot] = []

    def start(self) -> Sequence[Tensor]:
        return (self.start_U, *(torch.zeros_like(self.start_U) for _ in self._besides()))

    def paces(self) -> Sequence[Pace]:
        # Without a cut the rate of the scores is 0, and so is that of the multipliers: nothing has to be made up for.
        factor = self.config.multiplier_learning_rate / self.rate if self.rate else 1.0
        return (Pace(), *(Pace(factor if name == "multipliers" else 1.0) for name in self._besides()))

    def _besides(self) -> list[str]:
        """What is trained beside scores, in order."""
        return [name for name, there in (("slopes", self.several), ("multipliers", self.joint)) if there]

    def snapshot(self, numbers: Sequence[Tensor]) -> Snapshot:
        """What is trained, as a snapshot: g as the multipliers 1 + g."""
        scores_U, *others = (number.detach().cpu().clone() for number in numbers)
        besides = dict(zip(self._besides(), others, strict=True))
        raw_U = besides.get("multipliers")
        return Snapshot(scores_U, None if raw_U is None else 1 + raw_U, besides.get("slopes"))

    def values(self, numbers: Sequence[Tensor], progress: float) -> Tensor:
        if progress >= (len(self.snapshots) + 1) / self.config.snapshots:
            self.snapshots.append(self.snapshot(numbers))
        besides = dict(zip(self._besides(), numbers[1:], strict=True))
        budget = next(self.turns)
        scores_U = scores_at(numbers[0], besides.get("slopes"), self.depths[id(budget)])
        probabilities_U = torch.sigmoid(scores_U / self.config.temperature)
        whole, warmup = self.inventory.total_cost, self.config.budget_warmup
        # Projected by score, not by probability: the same order, but no ties where the sigmoid saturates.
        # Scores that are NaN make the loss so, which ends the training.
        kept_U = kept_units(scores_U.detach(), self.inventory, budget_at(budget, whole, warmup, progress))
        self.mask = UnitMask(self.inventory, kept_U)
        self.watch.see(budget, kept_U)
        gates_U = straight_through(kept_U, probabilities_U)
        return gates_U * (1 + besides["multipliers"]) if self.joint else gates_U

    def readings(self) -> Mapping[str, Tensor]:
        return self.watch.readings

    def noted(self) -> dict[str, Tensor]:
        taken = {
            f"{name}.{number}": tensor_U
            for number, snapshot in enumerate(self.snapshots)
            for name in ("scores", "multipliers", "slopes")
            if (tensor_U := getattr(snapshot, f"{name}_U")) is not None
        }
        return {**taken, **self.watch.noted()}

    def take_up(self, noted: Mapping[str, Tensor], steps: int) -> None:
        taken = sum(name.startswith("scores.") for name in noted)
        self.snapshots = [
            Snapshot(noted[f"scores.{n}"], noted.get(f"multipliers.{n}"), noted.get(f"slopes.{n}"))
            for n in range(taken)
        ]
        self.watch.take_up(noted)
        for _ in range(steps):
            next(self.turns)

    def shares(self) -> list[str]:
        """How much of each kind is in the model, for the bar."""
        mask = UnitMask(self.inventory, self.mask.kept_U.cpu())
        return [f"{kind.name} {mask.share(kind):.1%}" for kind in self.inventory.kinds]


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
