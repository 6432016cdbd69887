"""A model that is read layer by layer while it is run, over many sequences at once.

Memory holds what lies outside the decoder layers, one layer, the hidden states of the sequences, and the activations of
one sequence in one layer. A pass over a batch reads every layer once, a pass with gradients twice.

Shape suffixes: N sequences, B batch, S sequence, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from typing_extensions import Self

from ..layer_store import LayerStore, store_of
from ..surgery import Draft, Narrower, OutputProjection
from .distillation import LiveTeacher, Teacher
from .instrument import frozen, hidden_given
from .layerwise import layerwise, skipped
from .runner import Training
from .stream import LayerStream
from .streamed_building import streamed_pruned
from .whole import WholeModel

HIDDEN_BYTES = {"cpu": 64 * 2**20}
"""Bytes of the hidden states of all sequences that go through the layers together, by the kind of device.

A CPU takes longer to compute a layer for one sequence than to read it, so that few are enough. A GPU computes one of a
70B (1.7 GB in bf16) for 512 tokens in 2 ms, and reads it in more than 200.
"""
HIDDEN_BYTES_ELSEWHERE = 512 * 2**20
BORDER_BYTES = {"cpu": 256 * 2**20}
"""Bytes of the hidden states at the borders of all layers, which wait for the backward pass, in the host's memory."""
BORDER_BYTES_ELSEWHERE = 16 * 2**30
"""The same, of all processes on the machine together."""


class StreamedModel(WholeModel):
    """Runs a model whose decoder layers stay in their files, or any model by the layer.

    What is trained acts within the decoder layers: gradients end at what the first one is given.
    """

    def __init__(self, model: PreTrainedModel, store: LayerStore | None = None) -> None:
        """store: what brings the layers' weights into memory; by default what the model was loaded with, if anything.

        ValueError when weights are on the meta device that it does not know.
        """
        super().__init__(model)
        if (store := store or store_of(model)) is not None:
            store.release()
        reading = (part for part in model.modules() if isinstance(part, OutputProjection))  # these read for themselves
        known = {id(parameter) for part in reading for parameter in part.parameters()}
        absent = {name: part for name, part in model.named_parameters() if part.is_meta and id(part) not in known}
        for name, parameter in absent.items():
            if store is None or not store.holds(parameter):
                raise ValueError(f"{name} is nowhere to be read from")
        self.store = store if absent else None

    @property
    def in_memory(self) -> bool:
        """See `Runner.in_memory`."""
        return self.store is None

    @property
    def in_step(self) -> bool:
        """See `Runner.in_step`: where the layers come from the memory of all processes."""
        return self.store is not None and self.store.in_step

    @property
    def device(self) -> torch.device:
        """See `Runner.device`."""
        return self.model.device if self.store is None else self.store.device

    def beside(self, model: PreTrainedModel) -> Self:
        """See `Runner.beside`. A model that shares modules of this one's layers computes with their weights."""
        runner = type(self)(model, store_of(model) or self.store)
        runner.trainings = self.trainings
        return runner

    def parameter(self, name: str) -> Tensor:
        """See `Runner.parameter`."""
        parameter = super().parameter(name)
        return self.store.read(name) if parameter.is_meta and self.store is not None else parameter

    @property
    def drafts_lean(self) -> bool:
        """See `Runner.drafts_lean`."""
        return self.store is not None or super().drafts_lean

    def built(self, draft: Draft, *, inplace: bool = False, again: bool = False) -> PreTrainedModel:
        """See `Runner.built`. The layers of the smaller model are not in memory either."""
        if self.store is None or not isinstance(draft, Narrower):
            return super().built(draft, inplace=inplace, again=again)
        return streamed_pruned(draft.outline(again=again), self.model, self.family, self.device, in_step=self.in_step)

    def editing(self, linear: nn.Linear) -> AbstractContextManager[object]:
        """See `Runner.editing`."""
        return nullcontext() if self.store is None else self.store.editing(linear)

    @contextmanager
    def stream(self, tokens_NS: Tensor) -> Iterator[LayerStream]:
        """See `Runner.stream`."""
        layers = self.family.decoder_layers(self.model)
        with self._frozen():
            with skipped(layers):  # what layers are called with does not depend on what they compute
                stream = LayerStream.start(layers, self._hidden, tokens_NS, self.device)
            yield stream

    @contextmanager
    def _frozen(self, *, gradient_checkpointing: bool = False) -> Iterator[None]:
        layers = self.family.decoder_layers(self.model)
        store = self.store
        # Every layer is run again in the backward pass, sequence by sequence, which transformers need not do as well.
        with frozen(self.model), layerwise(layers, (lambda _: None) if store is None else store.fetch):
            try:
                yield
            finally:
                if store is not None:
                    store.release()

    def _at_once(self, length: int, least: int = 1, *, backward: bool = False) -> int:
        config, kind = self.model.config, self.device.type
        bytes_of_one = length * config.hidden_size * self.model.dtype.itemsize
        most = HIDDEN_BYTES.get(kind, HIDDEN_BYTES_ELSEWHERE) // bytes_of_one
        if backward:
            borders = self.family.num_layers(config) * bytes_of_one
            # By numbers that are the same in all processes, which may have to keep in step.
            room = BORDER_BYTES.get(kind, BORDER_BYTES_ELSEWHERE // self.peers.local_count)
            most = min(most, room // borders)
        return max(most // least, 1) * least

    def _losses(self, tokens_BS: Tensor) -> Tensor:
        parts = zip(self._hidden(tokens_BS).split(1), self._of_each(super()._losses, tokens_BS), strict=True)
        return torch.cat([losses(hidden_1SD) for hidden_1SD, losses in parts])

    def _summed_loss(self, tokens_BS: Tensor) -> Tensor:
        return _LossOf.apply(self._hidden(tokens_BS), self._of_each(super()._summed_loss, tokens_BS))

    def _loss(
        self, tokens_BS: Tensor, indices_B: Tensor, training: Training, teacher: Teacher | LiveTeacher | None
    ) -> Tensor:
        loss, size = super()._loss, len(tokens_BS)

        def share(tokens_1S: Tensor, indices_1: Tensor) -> Tensor:
            return loss(tokens_1S, indices_1, training, teacher) / size  # as many predictions in every sequence

        return _LossOf.apply(self._hidden(tokens_BS), self._of_each(share, tokens_BS, indices_B))

    def _of_each(self, work: Callable[..., Tensor], *of_batch: Tensor) -> list[Callable[[Tensor], Tensor]]:
        """What is to be worked out for each sequence of a batch, from its last hidden states, shape (1, S, D)."""

        def headed(of_sequence: Sequence[Tensor], hidden_1SD: Tensor) -> Tensor:
            with hidden_given(self.model, hidden_1SD):
                return work(*of_sequence)

        return [partial(headed, each) for each in zip(*(tensor.split(1) for tensor in of_batch), strict=True)]


class _LossOf(torch.autograd.Function):
    """The sum of the losses of all sequences, with its gradient by their hidden states, one sequence after another.

    The logits of one sequence are in memory at a time, and the head runs once. Not by `chunks`, whose parts cross
    sequences: by itself each comes to the whole model's bits, and near-ties of scores to the whole model's mask.
    """

    @staticmethod
    def forward(ctx: Any, hidden_BSD: Tensor, losses: Sequence[Callable[[Tensor], Tensor]]) -> Tensor:
        total, gradients = hidden_BSD.new_zeros((), dtype=torch.float32), []
        for hidden_1SD, loss_of in zip(hidden_BSD.split(1), losses, strict=True):
            given = hidden_1SD.detach().requires_grad_()
            with torch.enable_grad():
                loss = loss_of(given)
            gradients += torch.autograd.grad(loss, given)
            total = total + loss.detach()
        ctx.save_for_backward(torch.cat(gradients))
        return total

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        (gradient_BSD,) = ctx.saved_tensors
        return gradient_BSD * upstream.to(gradient_BSD.dtype), None
