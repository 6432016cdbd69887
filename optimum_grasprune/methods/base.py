"""What a pruning method is. A method that scores units writes `score` and nothing else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

from ..budget import Budget, project
from ..config import GRASPConfig
from ..families import Family
from ..masks import UnitMask
from ..units import UnitInventory


@dataclass(frozen=True)
class Task:
    """All that a method may look at.

    tokens_NS: calibration sequences, shape (N, S), int64; none for a method that needs none.
    """

    model: PreTrainedModel
    family: Family
    inventory: UnitInventory
    budget: Budget
    tokens_NS: Tensor
    config: GRASPConfig


class Method(ABC):
    """Scores units; what scores best within the budget stays."""

    needs_calibration: bool = True
    """Whether the method looks at the calibration sequences."""

    @abstractmethod
    def score(self, task: Task) -> Tensor:
        """One score per unit, shape (units,); higher is kept first."""

    def select(self, task: Task) -> UnitMask:
        """The units to keep."""
        return project(self.score(task), task.inventory, task.budget)
