"""GRASPrune: gate scores trained through the projected straight-through estimator.  (arXiv 2604.19398, section 3.2)"""

from torch import Tensor

from ..gating import train_gates
from .base import Method, Task
from .registry import register


@register("grasprune")
class GRASPrune(Method):
    """Learnt gates: each training step runs the model with the units of the current mask really gone."""

    def score(self, task: Task) -> Tensor:
        """Gate scores after training."""
        return train_gates(task.model, task.family, task.inventory, task.budget, task.tokens_NS, task.config)
