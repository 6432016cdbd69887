"""The model that is left of one whose layers stay in their files: it is cut out of them whenever a layer is run."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..families import Family
from ..layer_store import LayerStore, attach_store
from ..surgery import Outline


@dataclass(frozen=True)
class _WorkedOut:
    """A tensor that nothing holds. work: gives it."""

    work: Callable[[], Tensor]

    def read(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The tensor, worked out."""
        return self.work().to(device, dtype)


def streamed_pruned(
    outline: Outline, dense: PreTrainedModel, family: Family, device: torch.device, *, in_step: bool = False
) -> PreTrainedModel:
    """A model with its layers on the meta device, and a store that cuts them out of the dense model's.

    What is in no layer is the dense model's own: embeddings, final norm, head, frequencies of rotary embeddings.
    in_step: as the dense model's store has it.
    """
    with torch.device("meta"):
        pruned = outline.causal_lm(outline.config)
    for parameter in pruned.parameters():
        parameter.data = parameter.data.to(dense.dtype)
    for name, _ in list(pruned.named_parameters(remove_duplicate=False)):
        if not name.startswith(f"{family.layers}."):
            path, _, leaf = name.rpartition(".")
            pruned.get_submodule(path)._parameters[leaf] = dense.get_parameter(name)
    for name, _ in list(pruned.named_buffers(remove_duplicate=False)):
        path, _, leaf = name.rpartition(".")
        pruned.get_submodule(path)._buffers[leaf] = dense.get_buffer(name)
    stored = {name: _WorkedOut(read) for name, read in outline.layers.items()}
    attach_store(pruned, LayerStore(pruned, family.layers, stored, device, _as_it_is, in_step=in_step))
    pruned.generation_config = copy.deepcopy(dense.generation_config)
    pruned.config.name_or_path = pruned.name_or_path = dense.config.name_or_path
    return pruned.train(dense.training)


def _as_it_is(name: str, tensor: Tensor) -> None:
    """The dense model's tensors were looked at when they were read."""
