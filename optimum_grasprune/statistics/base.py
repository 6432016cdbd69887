"""What is gathered of a model while it reads calibration sequences.

Methods and stages of recovery declare which statistics they look at; a runner gathers those of all of them in one pass.

Shape suffixes: T tokens of one sequence, I input and O output features of a linear map.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from ..families import Block

Result = TypeVar("Result")


class Collector(ABC, Generic[Result]):
    """Takes in one sequence after another. A subclass writes `see`, or what it wants to see of gradients."""

    def see(self, path: str, x_TI: Tensor) -> None:
        """The input of the linear map at this path, for one sequence."""

    def see_gradient(self, path: str, x_TI: Tensor, gradient_TI: Tensor) -> None:
        """The same with the gradient of the sequence's summed loss, for the maps that lead out of blocks."""

    def see_output_gradient(self, path: str, gradient_TO: Tensor) -> None:
        """The gradient of the sequence's summed loss by the output of such a map; shape (T, O)."""

    def kept(self) -> Mapping[str, Tensor] | None:
        """What was taken in so far, as tensors by name; None where that cannot be kept, and is gathered anew."""
        return None

    def take_up(self, kept: Mapping[str, Tensor], device: torch.device) -> None:
        """Be as when `kept` was. kept: what it gave, on the CPU.  device: where the model is."""

    def merged(self, parts: Sequence[Mapping[str, Tensor]]) -> Mapping[str, Tensor] | None:
        """What `kept` would be if this had taken in what several have, each in its turn, one sequence at a time.

        parts: what each has kept, in that order.  None where that cannot be said, so that one has to take in all.
        """
        return None

    @abstractmethod
    def result(self, tokens: int) -> Result:
        """What it came to, from so many tokens in all."""


class Statistic(ABC, Generic[Result]):
    """Something that can be gathered. Subclasses are frozen dataclasses: equal ones are gathered once."""

    from_gradients: ClassVar[bool] = False
    """Whether it needs a backward pass, and sees gradients instead of inputs alone."""

    @abstractmethod
    def collector(self, blocks: tuple[Block, ...], maps: Mapping[str, int]) -> Collector[Result]:
        """A new collector. maps: input features of each linear map that is watched, by its path."""
