"""Taylor: the squared gradient of a gate, sequence by sequence.

(Molchanov et al., arXiv 1906.10771; LLM-Pruner, arXiv 2305.11627)
"""

from torch import Tensor

from ..calibration import squared_per_sequence
from .base import Method, Task
from .gradients import sensitivity_per_parameter
from .registry import register


@register("taylor")
class Taylor(Method):
    """Gradients of the loss by each unit's multiplier at one, squared, summed over sequences, per parameter."""

    source = "LLM-Pruner, arXiv 2305.11627"

    def score(self, task: Task) -> Tensor:
        """Σ over sequences of (∂L/∂z)² / cost, shape (units,)."""
        return sensitivity_per_parameter(task, squared_per_sequence)
