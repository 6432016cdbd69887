"""LLaMA with different widths in every layer, from vLLM's stock layers.

vLLM's decoder layer takes the configuration to read its widths from; ours hands it the layer's own. Attention, KV
cache, tensor and pipeline parallelism, LoRA and quantisation are vLLM's, untouched.
"""

from __future__ import annotations

from torch import nn
from vllm.config import VllmConfig
from vllm.model_executor.models.llama import LlamaDecoderLayer, LlamaForCausalLM

from .layers import finish, layer_config


class GRASPLlamaDecoderLayer(LlamaDecoderLayer):
    """A stock layer, built from `per_layer_config[layer]`, what is gone left out."""

    def __init__(self, vllm_config: VllmConfig, prefix: str = "") -> None:
        config = layer_config(vllm_config.model_config.hf_config, prefix)
        super().__init__(vllm_config, prefix=prefix, config=config)
        finish(self, vllm_config, prefix)


class GRASPLlamaForCausalLM(LlamaForCausalLM):
    """The stock LLaMA over those layers."""

    def __init__(
        self, *, vllm_config: VllmConfig, prefix: str = "", layer_type: type[nn.Module] = GRASPLlamaDecoderLayer
    ) -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix, layer_type=layer_type)
