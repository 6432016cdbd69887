"""Statistics that are gathered when the first of them is asked for, all in one pass.

Shape suffixes: N sequences, S sequence.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from torch import Tensor

from ..statistics import Statistic
from .runner import Runner

Result = TypeVar("Result")


class Gathered:
    """What methods and stages declared that they look at.

    declared: the statistics.  tokens_NS: the sequences that they are gathered on, shape (N, S), int64.
    maps, gradient_checkpointing: as in `Runner.gather`.
    """

    def __init__(
        self,
        runner: Runner,
        declared: Iterable[Statistic[Any]],
        tokens_NS: Tensor,
        maps: Sequence[str] | None = None,
        *,
        gradient_checkpointing: bool = False,
    ) -> None:
        self.runner, self.declared, self.tokens_NS = runner, tuple(dict.fromkeys(declared)), tokens_NS
        self.maps, self.gradient_checkpointing = maps, gradient_checkpointing
        self._gathered: dict[Statistic[Any], Any] = {}

    def __getitem__(self, statistic: Statistic[Result]) -> Result:
        """A statistic; KeyError for one that was not declared, which would take another pass."""
        if statistic not in self.declared:
            raise KeyError(f"{statistic} was not declared")
        if statistic not in self._gathered:
            self._gathered = self.runner.gather(
                self.declared, self.tokens_NS, self.maps, gradient_checkpointing=self.gradient_checkpointing
            )
        return self._gathered[statistic]
