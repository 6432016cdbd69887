"""A model that accelerate has spread over devices, CPU memory and disk.

What does not stay on a device that computes comes there for the forward pass of its module, by hooks of accelerate's,
and goes again. Autograd would hold on to every weight that it needs in the backward pass, all layers at once; so where
gradients are wanted each layer is recomputed in the backward pass, which fetches its weights a second time, and no more
than one layer's are there at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils.checkpoint import set_checkpoint_early_stop
from transformers import PreTrainedModel

from ..dispatched import first_device, is_offloaded, tensor_at
from .instrument import frozen
from .whole import WholeModel


class OffloadedModel(WholeModel):
    """Runs a model where its hooks bring it; one without hooks, as a pruned one, runs as it stands.

    Tokens and what is trained are where the embeddings compute. Losses, masks and scores are those of the whole model.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self._brought_to = first_device(model)

    @property
    def device(self) -> torch.device:
        """See `Runner.device`: where the embeddings compute."""
        return self._brought_to or self.model.device

    def parameter(self, name: str) -> Tensor:
        """See `Runner.parameter`; a copy, where it is kept elsewhere."""
        return tensor_at(self.model, name).to(self.device)

    @contextmanager
    def _frozen(self, *, gradient_checkpointing: bool = False) -> Iterator[None]:
        recompute = gradient_checkpointing or (torch.is_grad_enabled() and is_offloaded(self.model))
        # To its end: torch would leave the second forward pass of a layer by an exception, once it has what it needs,
        # and the hook on the last module would never hear that its weights may go.
        with set_checkpoint_early_stop(False), frozen(self.model, gradient_checkpointing=recompute):
            yield
