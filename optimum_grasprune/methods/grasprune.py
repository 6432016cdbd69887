"""GRASPrune: gate scores trained through the projected straight-through estimator.  (arXiv 2604.19398, section 3.2)"""

import torch
from torch import Tensor

from ..config import GRASPConfig
from ..gates import train_gates
from ..problem import Problem
from ..progress import track
from ..selection.width_search import SearchLimits, WidthLoss, mask_of_best_widths, widths_of
from ..statistics import PER_TOKEN, Sensitivity
from ..units import UnitMask, project
from .base import Method
from .gradients import annealed_sensitivity, sensitivity_per_parameter
from .registry import register


@register("grasprune")
class GRASPrune(Method):
    """Learnt gates: each training step runs the model with the units of the current mask really gone."""

    source = "GRASPrune, arXiv 2604.19398"
    allocations = ("global",)
    compensation = "both"
    held_out = 32

    def statistics_for(self, config: GRASPConfig) -> tuple[Sensitivity, ...]:
        """Fisher information, unless the start is blind."""
        return () if config.start == "zero" else (PER_TOKEN,)

    def score(self, task: Problem) -> Tensor:
        """What the gates start from, shape (units,): zeros, or Fisher information per parameter."""
        if task.config.start == "zero":
            return torch.zeros(task.inventory.num_units, dtype=torch.float32, device="cpu")
        return sensitivity_per_parameter(task, PER_TOKEN)

    def candidates(self, task: Problem, scores_U: Tensor) -> dict[str, UnitMask]:
        """The masks of the start, unless it is blind, of each snapshot of the gate training, and of searched widths."""
        start_U = self._start(task, scores_U)
        scores = {} if task.config.start == "zero" else {"start": start_U}
        trained = train_gates(task.runner, task.budget, task.tokens_NS, task.config, start_U)
        for number, snapshot_U in enumerate(trained, start=1):
            scores[f"gates {number}/{len(trained)}"] = snapshot_U
        masks = {name: project(score_U, task.inventory, task.budget) for name, score_U in scores.items()}
        if task.config.search_trials:
            masks["searched"] = self._with_best_widths(task, masks, scores)
        return masks

    def _start(self, task: Problem, scores_U: Tensor) -> Tensor:
        """Gate scores at the start.

        Fisher information spans ten orders of magnitude, but only its order counts for a mask; its logarithm puts the
        start on the scale on which training moves scores.
        """
        if task.config.start == "zero":
            return scores_U
        annealed_U = annealed_sensitivity(task, PER_TOKEN, scores_U, task.config.start_rounds)
        return standardised_log(annealed_U)

    def _with_best_widths(self, task: Problem, masks: dict[str, UnitMask], scores: dict[str, Tensor]) -> UnitMask:
        config = task.config
        loss = WidthLoss(task.runner, task.tokens_NS[: config.search_samples])
        best = min(track(masks, "candidates", "mask"), key=lambda name: loss(masks[name]))
        limits = SearchLimits(config.search_trials, config.search_seconds)
        return mask_of_best_widths(widths_of(masks[best]), scores[best], loss, task.budget, limits, config.seed)


def standardised_log(values_U: Tensor) -> Tensor:
    """Log v with mean 0 and standard deviation 1 over the units; zeros take the smallest logarithm. Shape (units,)."""
    positive_U = values_U > 0
    if not positive_U.any():
        return torch.zeros_like(values_U)
    logarithms_U = values_U.clamp_min(values_U[positive_U].min()).log()
    deviation = logarithms_U.std(correction=0)
    return (logarithms_U - logarithms_U.mean()) / deviation.clamp_min(torch.finfo(torch.float32).tiny)
