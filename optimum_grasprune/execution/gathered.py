"""Statistics that are gathered when the first of them is asked for, all in one pass.

Shape suffixes: N sequences, S sequence.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from functools import cached_property
from hashlib import sha256
from typing import Any, TypeVar
from weakref import ref

from torch import Tensor
from transformers import PreTrainedModel

from ..statistics import Statistic
from .runner import Runner

Result = TypeVar("Result")


class KnownStatistics:
    """What was gathered before, for problems that look at the same statistics of the same model and sequences."""

    def __init__(self) -> None:
        self._known: dict[Hashable, dict[Statistic[Any], Any]] = {}

    def of(self, model: PreTrainedModel, tokens_NS: Tensor, maps: Sequence[str] | None) -> dict[Statistic[Any], Any]:
        """Those of a model that has read these sequences, to which new ones are added; arguments as in `Runner.gather`.

        The model is not held on to.
        """
        text = sha256(tokens_NS.cpu().contiguous().numpy().tobytes()).digest()
        key = ref(model), tokens_NS.shape, text, None if maps is None else tuple(maps)
        return self._known.setdefault(key, {})


class Gathered:
    """What methods and stages declared that they look at.

    declared: the statistics.  tokens_NS: the sequences that they are gathered on, shape (N, S), int64.
    maps, gradient_checkpointing: as in `Runner.gather`.  known: what was gathered before; what is gathered is added.
    """

    def __init__(
        self,
        runner: Runner,
        declared: Iterable[Statistic[Any]],
        tokens_NS: Tensor,
        maps: Sequence[str] | None = None,
        *,
        gradient_checkpointing: bool = False,
        known: KnownStatistics | None = None,
    ) -> None:
        self.runner, self.declared, self.tokens_NS = runner, tuple(dict.fromkeys(declared)), tokens_NS
        self.maps, self.gradient_checkpointing = maps, gradient_checkpointing
        self.known = known or KnownStatistics()

    def __getitem__(self, statistic: Statistic[Result]) -> Result:
        """A statistic; KeyError for one that was not declared, which would take another pass."""
        if statistic not in self.declared:
            raise KeyError(f"{statistic} was not declared")
        if statistic not in self._gathered:
            missing = [each for each in self.declared if each not in self._gathered]
            self._gathered.update(
                self.runner.gather(
                    missing, self.tokens_NS, self.maps, gradient_checkpointing=self.gradient_checkpointing
                )
            )
        return self._gathered[statistic]

    @cached_property
    def _gathered(self) -> dict[Statistic[Any], Any]:
        return self.known.of(self.runner.model, self.tokens_NS, self.maps)
