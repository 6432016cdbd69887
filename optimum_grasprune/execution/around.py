"""Runners that have another one do their work, and add something to it.

Shape suffixes: N sequences, S sequence.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..surgery import Draft
from ..units import PruningPlan
from .instrument import Gates
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
    def device(self) -> torch.device:
        """See `Runner.device`."""
        return self.inner.device

    def parameter(self, name: str) -> Tensor:
        """See `Runner.parameter`."""
        return self.inner.parameter(name)

    def draft(self, plan: PruningPlan, *, output_bias: bool = False) -> Draft:
        """See `Runner.draft`."""
        return self.inner.draft(plan, output_bias=output_bias)

    def built(self, draft: Draft, *, inplace: bool = False) -> PreTrainedModel:
        """See `Runner.built`."""
        return self.inner.built(draft, inplace=inplace)

    def editing(self, linear: nn.Linear) -> AbstractContextManager[object]:
        """See `Runner.editing`."""
        return self.inner.editing(linear)

    def gated(self) -> AbstractContextManager[Gates]:
        """See `Runner.gated`."""
        return self.inner.gated()

    def stream(self, tokens_NS: Tensor) -> AbstractContextManager[LayerStream]:
        """See `Runner.stream`."""
        return self.inner.stream(tokens_NS)
