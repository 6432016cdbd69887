"""Mistral and Ministral with different widths in every layer, from vLLM's stock layers of Mistral.

Which layers see a window only, and how wide it is, the stock attention reads off the configuration.
"""

from __future__ import annotations

from torch import nn
from vllm.config import VllmConfig
from vllm.model_executor.models.mistral import MistralDecoderLayer, MistralForCausalLM

from .layers import finish, layer_config


class GRASPMistralDecoderLayer(MistralDecoderLayer):
    """A stock layer, built from `per_layer_config[layer]`, what is gone left out."""

    def __init__(self, vllm_config: VllmConfig, prefix: str = "") -> None:
        config = layer_config(vllm_config.model_config.hf_config, prefix)
        super().__init__(vllm_config, prefix=prefix, config=config)
        finish(self, vllm_config, prefix)


class GRASPMistralForCausalLM(MistralForCausalLM):
    """The stock Mistral over those layers."""

    def __init__(
        self, *, vllm_config: VllmConfig, prefix: str = "", layer_type: type[nn.Module] = GRASPMistralDecoderLayer
    ) -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix, layer_type=layer_type)
