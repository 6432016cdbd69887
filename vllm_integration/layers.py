"""What families' layers need beside vLLM's stock ones: their own widths and windows, biases, blocks that are gone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.model_executor.layers.linear import RowParallelLinear
from vllm.model_executor.models.utils import extract_layer_index

from optimum_grasprune.families import family_of, family_of_type
from optimum_grasprune.families.shape import layer_shape, splits


def layer_config(config: PreTrainedConfig, prefix: str) -> PreTrainedConfig:
    """The configuration of the layer at a prefix, `model.layers.3`, with its own widths. config: the whole model's.

    Where a block is gone it says the smallest one that stock constructors build; `finish` takes that out again.
    Raises ValueError when the layer cannot be split among the tensor-parallel ranks.
    """
    layer, size = extract_layer_index(prefix), get_tensor_model_parallel_world_size()
    family, own = family_of(config), config.per_layer_config[layer]
    check_tensor_parallel(layer, own, size)
    for field in family.sizes.widths:
        if not getattr(own, field, size):
            setattr(own, field, size)
    return own


def finish(layer: nn.Module, vllm_config: VllmConfig, prefix: str) -> None:
    """Give a stock layer the output biases that the checkpoint has, and take out the blocks of which nothing is left.

    With its attention goes what vLLM would allocate a KV cache for.
    """
    config = vllm_config.model_config.hf_config
    family, own = family_of(config), config.per_layer_config[extract_layer_index(prefix)]
    if getattr(config, "output_bias", False):  # checkpoints that carry older code of ours do not know the field
        add_biases(layer, family.attention_output, family.ffn_output)
    shape = layer_shape(own, family)
    if not shape.kv_heads:
        _take_out(layer, family.attention_output)
        forget_attention(vllm_config, prefix)
    if not shape.ffn_channels:
        _take_out(layer, family.ffn_output, *(projection.path for projection in family.ffn_inputs))


def forget_attention(vllm_config: VllmConfig, prefix: str) -> None:
    """Let vLLM allocate no KV cache for the attention of the stock layer that was built at a prefix."""
    built = vllm_config.compilation_config.static_forward_context
    for name in [name for name in built if name.startswith(f"{prefix}.self_attn.")]:
        del built[name]


def add_biases(layer: nn.Module, *outputs: str) -> None:
    """Give maps that lead out of a stock layer's blocks a bias where they have none. outputs: paths below the layer."""
    for path in outputs:
        parent, _, name = path.rpartition(".")
        linear: Any = layer.get_submodule(path)
        setattr(layer.get_submodule(parent), name, _with_bias(linear))


@contextmanager
def without_layers(config: PreTrainedConfig) -> Iterator[None]:
    """While the block runs, stock constructors build everything but layers from a configuration."""
    layers = config.num_hidden_layers
    config.num_hidden_layers = 0
    try:
        yield
    finally:
        config.num_hidden_layers = layers


class OnlyBias(nn.Module):
    """In place of a map that leads out of a block of which nothing is left: zero, or what its bias says."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        bias: Any = getattr(linear, "bias", None)
        self.bias = None if bias is None else nn.Parameter(torch.zeros_like(bias), requires_grad=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """What the block puts out, shape (T, D). hidden_states: what goes in, of the same shape."""
        nothing = torch.zeros_like(hidden_states)
        return nothing if self.bias is None else nothing + self.bias


class NoBlock(nn.Module):
    """In place of such a block. name: of the map that led out."""

    def __init__(self, name: str, output: OnlyBias) -> None:
        super().__init__()
        self.name = name
        setattr(self, name, output)

    def forward(self, hidden_states: torch.Tensor, positions: torch.Tensor | None = None, **_: Any) -> torch.Tensor:
        """What the block puts out, shape (T, D). hidden_states: what goes in.  positions: as attention takes them."""
        return getattr(self, self.name)(hidden_states)


class _Map(nn.Module):
    """What stands for a map that a layer calls by itself: it returns its output and, as vLLM's maps do, a bias."""

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, None]:
        return hidden_states, None


class _OutputMap(OnlyBias):
    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        return super().forward(hidden_states), None


def _take_out(layer: nn.Module, output: str, *inputs: str) -> None:
    # inputs: the maps into it, which stand beside the output where the block is no module of its own.
    block, _, name = output.rpartition(".")
    if block:
        setattr(layer, block, NoBlock(name, OnlyBias(layer.get_submodule(output))))
        return
    setattr(layer, output, _OutputMap(layer.get_submodule(output)))
    for path in inputs:
        setattr(layer, path, _Map())


def check_tensor_parallel(layer: int, config: PreTrainedConfig, size: int) -> None:
    """Raise ValueError, with the layer and the way out, where vLLM would stop at a bare assertion.

    config: the layer's own configuration.  size: tensor-parallel size. vLLM splits KV heads among the ranks, or where
    there are fewer heads than ranks gives each head to the same number of ranks.
    """
    family = family_of_type(config.model_type)
    if family is not None and not splits(shape := layer_shape(config, family), size):
        raise ValueError(
            f"layer {layer} has {shape.query_heads} query heads, {shape.kv_heads} KV heads and {shape.ffn_channels} "
            f"FFN channels, which cannot be split for tensor-parallel size {size}; prune with "
            f"--tensor-parallel-size {size}"
        )


def _with_bias(linear: RowParallelLinear) -> RowParallelLinear:
    # Stock layers have no flag for this. Built anew from what vLLM gave the first one: its sizes are those before the
    # split among ranks, the bias is whole on every rank, and rank 0 alone adds it.
    if linear.bias is not None:
        return linear
    return RowParallelLinear(
        input_size=linear.input_size,
        output_size=linear.output_size,
        bias=True,
        reduce_results=linear.reduce_results,
        quant_config=linear.quant_config,
        prefix=linear.prefix,
        disable_tp=linear.disable_tp,
    )
