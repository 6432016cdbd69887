"""GRASPrune: gate scores trained through the projected straight-through estimator.  (arXiv 2604.19398, section 3.2)"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..config import GRASPConfig
from ..gates import Snapshot, gate_snapshots, gate_snapshots_at
from ..problem import Problem
from ..progress import track
from ..selection.width_search import SearchLimits, WidthLoss, mask_of_best_widths, widths_of
from ..statistics import PER_TOKEN, Sensitivity
from ..units import UnitMask
from .base import Method
from .gradients import annealed_sensitivity, sensitivity_per_parameter
from .registry import register


@register("grasprune")
class GRASPrune(Method):
    """Learnt gates: each training step runs the model with the units of the current mask really gone."""

    source = "GRASPrune, arXiv 2604.19398"
    allocations = ("global",)
    compensation = "rebuild"
    compensation_beside_smaller = "refit"  # each would be rebuilt by itself, for little
    least_squares = "weighted"
    statistic_samples = 64
    held_out = 32
    training = "gates"
    trains_at_all_budgets = True

    def statistics_for(self, config: GRASPConfig) -> tuple[Sensitivity, ...]:
        """Fisher information, unless the start is blind."""
        return () if config.start == "zero" else (PER_TOKEN,)

    def score(self, problem: Problem) -> Tensor:
        """What the gates start from, shape (units,): zeros, or Fisher information per parameter."""
        if problem.config.start == "zero":
            return torch.zeros(problem.inventory.num_units, dtype=torch.float32, device="cpu")
        return sensitivity_per_parameter(problem, PER_TOKEN)

    def candidates(self, problem: Problem, scores_U: Tensor) -> dict[str, UnitMask]:
        """The masks of the start, unless it is blind, of each snapshot of the gate training, and of searched widths."""
        start_U = self._start(problem, scores_U)
        trained = gate_snapshots(
            problem.runner, problem.budget, problem.tokens_NS, problem.config, start_U, dense=problem.teacher
        )
        return self._masks(problem, start_U, trained)

    def candidates_at(self, problems: Sequence[Problem], scores_U: Tensor) -> Callable[[Problem], dict[str, UnitMask]]:
        """The same at several budgets, of gates that were trained for the smallest."""
        if len(problems) == 1:
            return super().candidates_at(problems, scores_U)
        *_, smallest = problems
        start_U, budgets = self._start(smallest, scores_U), [problem.budget for problem in problems]
        trained = gate_snapshots_at(
            smallest.runner, budgets, smallest.tokens_NS, smallest.config, start_U, smallest.teacher
        )
        return lambda problem: self._masks(problem, start_U, trained(problem.budget))

    def _masks(self, problem: Problem, start_U: Tensor, trained: Sequence[Snapshot]) -> dict[str, UnitMask]:
        snapshots = {} if problem.config.start == "zero" else {"start": Snapshot(start_U)}
        for number, snapshot in enumerate(trained, start=1):
            snapshots[f"gates {number}/{len(trained)}"] = snapshot
        masks = {name: snapshot.mask(problem.inventory, problem.budget) for name, snapshot in snapshots.items()}
        if problem.config.search_trials:
            masks["searched"] = self._with_best_widths(problem, masks, snapshots)
        return masks

    def _start(self, problem: Problem, scores_U: Tensor) -> Tensor:
        """Gate scores at the start.

        Fisher information spans ten orders of magnitude, but only its order counts for a mask; its logarithm puts the
        start on the scale on which training moves scores.
        """
        if problem.config.start == "zero":
            return scores_U
        annealed_U = annealed_sensitivity(problem, PER_TOKEN, scores_U, problem.config.start_rounds)
        return standardised_log(annealed_U)

    def _with_best_widths(
        self, problem: Problem, masks: dict[str, UnitMask], snapshots: dict[str, Snapshot]
    ) -> UnitMask:
        config = problem.config
        loss = WidthLoss(problem.runner, problem.tokens_NS[: config.search_samples])
        best = min(track(masks, "candidates", "mask"), key=lambda name: loss(masks[name]))
        limits = SearchLimits(config.search_trials, config.search_seconds)
        start, order = widths_of(masks[best]), snapshots[best]
        return mask_of_best_widths(
            start, order.scores_U, loss, problem.budget, limits, config.seed, order.multipliers_U
        )


def standardised_log(values_U: Tensor) -> Tensor:
    """Log v with mean 0 and standard deviation 1 over the units; zeros take the smallest logarithm. Shape (units,)."""
    positive_U = values_U > 0
    if not positive_U.any():
        return torch.zeros_like(values_U)
    logarithms_U = values_U.clamp_min(values_U[positive_U].min()).log()
    deviation = logarithms_U.std(correction=0)
    return (logarithms_U - logarithms_U.mean()) / deviation.clamp_min(torch.finfo(torch.float32).tiny)
