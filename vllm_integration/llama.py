"""LLaMA with different widths in every layer, from vLLM's stock layers.

vLLM's decoder layer takes the configuration to read its widths from; ours hands it the layer's own. Attention, KV
cache, tensor and pipeline parallelism, LoRA and quantisation are vLLM's, untouched.
"""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedConfig
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.model_executor.layers.linear import RowParallelLinear
from vllm.model_executor.models.llama import LlamaDecoderLayer, LlamaForCausalLM
from vllm.model_executor.models.utils import extract_layer_index

from optimum_grasprune.serving.fit import LayerWidths, splits


class GRASPLlamaDecoderLayer(LlamaDecoderLayer):
    """A stock layer, built from `per_layer_config[layer]`, with output biases where the configuration says so."""

    def __init__(self, vllm_config: VllmConfig, prefix: str = "") -> None:
        layer = extract_layer_index(prefix)
        config = vllm_config.model_config.hf_config.per_layer_config[layer]
        check_tensor_parallel(layer, config, get_tensor_model_parallel_world_size())
        super().__init__(vllm_config, prefix=prefix, config=config)
        if getattr(config, "output_bias", False):  # checkpoints that carry older code of ours do not know the field
            self.self_attn.o_proj = _with_bias(self.self_attn.o_proj)
            self.mlp.down_proj = _with_bias(self.mlp.down_proj)


class GRASPLlamaForCausalLM(LlamaForCausalLM):
    """The stock LLaMA over those layers."""

    def __init__(
        self, *, vllm_config: VllmConfig, prefix: str = "", layer_type: type[nn.Module] = GRASPLlamaDecoderLayer
    ) -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix, layer_type=layer_type)


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


def check_tensor_parallel(layer: int, config: PreTrainedConfig, size: int) -> None:
    """Raise ValueError, with the layer and the way out, where vLLM would stop at a bare assertion.

    config: the layer's own configuration.  size: tensor-parallel size. vLLM splits KV heads among the ranks, or where
    there are fewer heads than ranks gives each head to the same number of ranks.
    """
    queries, heads, channels = config.num_attention_heads, config.num_key_value_heads, config.intermediate_size
    if not splits(LayerWidths(queries, heads, channels), size):
        raise ValueError(
            f"layer {layer} has {queries} query heads, {heads} KV heads and {channels} FFN channels, which cannot be "
            f"split for tensor-parallel size {size}; prune with --tensor-parallel-size {size}"
        )
