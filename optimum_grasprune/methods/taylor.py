"""Taylor: the squared gradient of a gate, sequence by sequence.

(Molchanov et al., arXiv 1906.10771; LLM-Pruner, arXiv 2305.11627)
"""

from torch import Tensor

from ..problem import Problem
from ..statistics import PER_SEQUENCE
from .base import Method
from .gradients import sensitivity_per_parameter
from .registry import register


@register("taylor")
class Taylor(Method):
    """Gradients of the loss by each unit's multiplier at one, squared, summed over sequences, per parameter."""

    source = "LLM-Pruner, arXiv 2305.11627"
    statistics = (PER_SEQUENCE,)

    def score(self, problem: Problem) -> Tensor:
        """Σ over sequences of (∂L/∂z)² / cost, shape (units,)."""
        return sensitivity_per_parameter(problem, PER_SEQUENCE)
