"""What families' layers need beside vLLM's stock ones: their own widths and windows, biases, a check of the split."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import PreTrainedConfig
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.model_executor.layers.linear import RowParallelLinear
from vllm.model_executor.models.utils import extract_layer_index

from optimum_grasprune.families.shape import LayerShape
from optimum_grasprune.serving.fit import splits


def layer_config(config: PreTrainedConfig, prefix: str) -> PreTrainedConfig:
    """The configuration of the layer at a prefix, `model.layers.3`, with its own widths. config: the whole model's.

    Raises ValueError when it cannot be split among the tensor-parallel ranks.
    """
    layer = extract_layer_index(prefix)
    own: PreTrainedConfig = config.per_layer_config[layer]
    check_tensor_parallel(layer, own, get_tensor_model_parallel_world_size())
    return own


def add_output_biases(layer: nn.Module, config: PreTrainedConfig, *outputs: str) -> None:
    """Give the maps that lead out of a stock layer's blocks the biases that the configuration says the checkpoint has.

    outputs: their paths below the layer.
    """
    if getattr(config, "output_bias", False):  # checkpoints that carry older code of ours do not know the field
        add_biases(layer, *outputs)


def add_biases(layer: nn.Module, *outputs: str) -> None:
    """Give maps that lead out of a stock layer's blocks a bias where they have none. outputs: paths below the layer."""
    for path in outputs:
        parent, _, name = path.rpartition(".")
        linear: Any = layer.get_submodule(path)
        setattr(layer.get_submodule(parent), name, _with_bias(linear))


def window(config: PreTrainedConfig, prefix: str) -> int | None:
    """Tokens that the layer at a prefix sees at once, where the configuration says so of some layers; else None."""
    types = getattr(config, "layer_types", None)
    return config.sliding_window if types and types[extract_layer_index(prefix)] == "sliding_attention" else None


@contextmanager
def without_layers(config: PreTrainedConfig) -> Iterator[None]:
    """While the block runs, stock constructors build everything but layers from a configuration."""
    layers = config.num_hidden_layers
    config.num_hidden_layers = 0
    try:
        yield
    finally:
        config.num_hidden_layers = layers


def check_tensor_parallel(layer: int, config: PreTrainedConfig, size: int) -> None:
    """Raise ValueError, with the layer and the way out, where vLLM would stop at a bare assertion.

    config: the layer's own configuration.  size: tensor-parallel size. vLLM splits KV heads among the ranks, or where
    there are fewer heads than ranks gives each head to the same number of ranks.
    """
    queries, heads, channels = config.num_attention_heads, config.num_key_value_heads, config.intermediate_size
    if not splits(LayerShape(queries, heads, channels), size):
        raise ValueError(
            f"layer {layer} has {queries} query heads, {heads} KV heads and {channels} FFN channels, which cannot be "
            f"split for tensor-parallel size {size}; prune with --tensor-parallel-size {size}"
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
