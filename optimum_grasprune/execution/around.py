"""Runners that have another one do their work, and add something to it.

Shape suffixes: N sequences, S sequence, U units.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..statistics import Statistic
from ..surgery import Draft
from ..units import PruningPlan
from .instrument import Gates
from .run_state import Piece
from .runner import Runner
from .stream import LayerStream


class Around(Runner):
    """What is the inner runner's alone is asked of it; a subclass writes the rest."""

    def __init__(self, inner: Runner) -> None:
        super().__init__(inner.model)
        self.inner, self.trainings, self.peers = inner, inner.trainings, inner.peers

    @property
    def in_memory(self) -> bool:
        """See `Runner.in_memory`."""
        return self.inner.in_memory

    @property
    def in_step(self) -> bool:
        """See `Runner.in_step`."""
        return self.inner.in_step

    @property
    def device(self) -> torch.device:
        """See `Runner.device`."""
        return self.inner.device

    def parameter(self, name: str) -> Tensor:
        """See `Runner.parameter`."""
        return self.inner.parameter(name)

    def draft(self, plan: PruningPlan, *, output_bias: bool = False) -> Draft:
        """See `Runner.draft`."""
        return self.inner.draft(plan, output_bias=output_bias)

    def built(self, draft: Draft, *, inplace: bool = False, again: bool = False) -> PreTrainedModel:
        """See `Runner.built`."""
        return self.inner.built(draft, inplace=inplace, again=again)

    def release(self) -> None:
        """See `Runner.release`."""
        self.inner.release()

    def editing(self, linear: nn.Linear) -> AbstractContextManager[object]:
        """See `Runner.editing`."""
        return self.inner.editing(linear)

    def gated(self) -> AbstractContextManager[Gates]:
        """See `Runner.gated`."""
        return self.inner.gated()

    def stream(self, tokens_NS: Tensor) -> AbstractContextManager[LayerStream]:
        """See `Runner.stream`."""
        return self.inner.stream(tokens_NS)

    def losses(self, windows_NS: Tensor, batch_size: int = 1) -> Iterator[Tensor]:
        """See `Runner.losses`."""
        return self.inner.losses(windows_NS, batch_size)

    def gather(
        self,
        statistics: Iterable[Statistic[Any]],
        tokens_NS: Tensor,
        maps: Sequence[str] | None = None,
        *,
        kept_U: Tensor | None = None,
        gradient_checkpointing: bool = False,
        piece: Piece | None = None,
    ) -> dict[Statistic[Any], Any]:
        """See `Runner.gather`."""
        return self.inner.gather(
            statistics, tokens_NS, maps, kept_U=kept_U, gradient_checkpointing=gradient_checkpointing, piece=piece
        )
