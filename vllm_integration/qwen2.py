"""Qwen2 and Qwen2.5 with different widths in every layer, from vLLM's stock layers of LLaMA.

Those of Qwen2 take the size of a head from the number of heads, which differs here, and want all layers to see a window
if one does. LLaMA's, with biases on queries, keys and values, compute the same.
"""

from __future__ import annotations

import copy

from torch import nn
from vllm.config import VllmConfig
from vllm.model_executor.models.llama import LlamaDecoderLayer, LlamaForCausalLM

from .layers import finish, layer_config


class GRASPQwen2DecoderLayer(LlamaDecoderLayer):
    """A stock layer, built from `per_layer_config[layer]`, what is gone left out."""

    def __init__(self, vllm_config: VllmConfig, prefix: str = "") -> None:
        config = copy.copy(layer_config(vllm_config.model_config.hf_config, prefix))
        config.qkv_bias = True  # as LLaMA's layer asks for it
        super().__init__(vllm_config, prefix=prefix, config=config)
        finish(self, vllm_config, prefix)


class GRASPQwen2ForCausalLM(LlamaForCausalLM):
    """The stock LLaMA over those layers."""

    def __init__(
        self, *, vllm_config: VllmConfig, prefix: str = "", layer_type: type[nn.Module] = GRASPQwen2DecoderLayer
    ) -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix, layer_type=layer_type)
