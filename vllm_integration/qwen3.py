"""Qwen3 with different widths in every layer, from vLLM's stock layers of Qwen3.

They lie in vLLM's LLaMA, which takes the class of its layers: Qwen3's builds its own, and wants all of them to see a
window if one does.
"""

from __future__ import annotations

from torch import nn
from vllm.config import VllmConfig
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.model_executor.models.qwen3 import Qwen3DecoderLayer
from vllm.model_executor.models.utils import extract_layer_index

from optimum_grasprune.families import family_of

from .layers import add_biases, finish, layer_config


class GRASPQwen3DecoderLayer(Qwen3DecoderLayer):
    """A stock layer, built from `per_layer_config[layer]`, what is gone left out."""

    def __init__(self, vllm_config: VllmConfig, prefix: str = "") -> None:
        config = layer_config(vllm_config.model_config.hf_config, prefix)
        super().__init__(
            config,
            vllm_config.cache_config,
            vllm_config.quant_config,
            prefix=prefix,
            per_layer_sliding_window=family_of(config).window(config, extract_layer_index(prefix)),
        )
        if config.attention_bias:  # in transformers that is one on the output too; the stock layer has none
            add_biases(self, "self_attn.o_proj")
        finish(self, vllm_config, prefix)


class GRASPQwen3ForCausalLM(LlamaForCausalLM):
    """The stock LLaMA over those layers."""

    def __init__(
        self, *, vllm_config: VllmConfig, prefix: str = "", layer_type: type[nn.Module] = GRASPQwen3DecoderLayer
    ) -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix, layer_type=layer_type)
