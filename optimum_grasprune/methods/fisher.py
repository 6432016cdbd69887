"""Fisher: the squared gradient of a gate, token by token: the diagonal of the empirical Fisher matrix."""

from torch import Tensor

from ..problem import Problem
from ..statistics import PER_TOKEN
from .base import Method
from .gradients import sensitivity_per_parameter
from .registry import register


@register("fisher")
class Fisher(Method):
    """Like `taylor`, but gradients of different tokens of a sequence cannot cancel."""

    source = "LLM-Pruner, arXiv 2305.11627"
    statistics = (PER_TOKEN,)

    def score(self, problem: Problem) -> Tensor:
        """Mean over tokens of (∂S/∂z)² / cost, shape (units,)."""
        return sensitivity_per_parameter(problem, PER_TOKEN)
