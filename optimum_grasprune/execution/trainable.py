"""What is trained while a model's weights are fixed: a few numbers that act on activations.

Shape suffixes: U units, I input features, O output features.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from .runner import Runner

Multipliers = Callable[[Tensor, float], Tensor]
"""What the units are multiplied by, shape (units,), from what is trained and the progress of the training: 0 at the
first step, 1 after the last."""


class Step(Protocol):
    """Called before each forward pass."""

    def __call__(self, progress: float, judged: bool = False, /) -> None:
        """Have the model compute with the numbers as they are now.

        progress: of the training.  judged: whether nothing is learnt from what is computed, which only says how good
        the outcome would be if the training ended here.
        """


class Pace(NamedTuple):
    """How one tensor of numbers is trained.

    rate: its learning rate, as a multiple of the training's.  ascends: whether it climbs the loss, as the multiplier of
    a constraint does, where everything else descends.
    """

    rate: float = 1.0
    ascends: bool = False


class Trainable(ABC):
    """Numbers, and how they act on a model."""

    @abstractmethod
    def start(self) -> Sequence[Tensor]:
        """What the numbers are at first, fp32."""

    @abstractmethod
    def attached(self, runner: Runner, numbers: Sequence[Tensor]) -> AbstractContextManager[Step]:
        """Inside the block the runner's model computes with the numbers, which are where the model is."""

    def paces(self) -> Sequence[Pace]:
        """How each tensor of `start` is trained."""
        return [Pace() for _ in self.start()]

    def penalty(self, numbers: Sequence[Tensor], progress: float) -> Tensor | None:
        """What is added to the loss of a step beside what the model predicts, a scalar; None for nothing."""
        return None

    def readings(self) -> Mapping[str, Tensor]:
        """What the step under way is watched by beside its loss, by name: scalars, on any device."""
        return {}

    def noted(self) -> Mapping[str, Tensor]:
        """What it has noted on the way beside the numbers, by name; a training that goes on later needs it."""
        return {}

    def take_up(self, noted: Mapping[str, Tensor]) -> None:  # noqa: B027
        """Be as when that was noted. noted: on the CPU."""


class OfUnits(Trainable):
    """Numbers that multiply the units."""

    @abstractmethod
    def values(self, numbers: Sequence[Tensor], progress: float) -> Tensor:
        """What the units are multiplied by at a step, shape (units,); see `Multipliers`."""

    @contextmanager
    def attached(self, runner: Runner, numbers: Sequence[Tensor]) -> Iterator[Step]:
        """The units are multiplied."""
        with runner.gated() as gates:

            def step(progress: float, judged: bool = False) -> None:
                gates.values_U = self.values(numbers, progress)

            yield step


@dataclass(frozen=True)
class UnitMultipliers(OfUnits):
    """One number per unit. start_U: shape (units,), fp32."""

    start_U: Tensor
    multipliers: Multipliers

    def start(self) -> Sequence[Tensor]:
        """One tensor of all units."""
        return (self.start_U,)

    def values(self, numbers: Sequence[Tensor], progress: float) -> Tensor:
        """What `multipliers` makes of the numbers."""
        (values_U,) = numbers
        return self.multipliers(values_U, progress)
