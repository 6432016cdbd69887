"""Gemma 3 (text) with different widths in every layer, from vLLM's stock layers of Gemma 3."""

from __future__ import annotations

import torch
from vllm.config import VllmConfig
from vllm.model_executor.models.gemma3 import Gemma3DecoderLayer, Gemma3ForCausalLM
from vllm.model_executor.models.utils import make_layers, maybe_prefix

from .layers import finish, layer_config, without_layers


class GRASPGemma3DecoderLayer(Gemma3DecoderLayer):
    """A stock layer, built from `per_layer_config[layer]`, what is gone left out."""

    def __init__(self, vllm_config: VllmConfig, prefix: str = "") -> None:
        config = layer_config(vllm_config.model_config.hf_config, prefix)
        super().__init__(config, vllm_config.cache_config, vllm_config.quant_config, prefix=prefix)
        finish(self, vllm_config, prefix)


class GRASPGemma3ForCausalLM(Gemma3ForCausalLM):
    """The stock Gemma 3 over those layers, which are put in afterwards: it takes no class for them.

    Raises ValueError for float16, as vLLM does for the dense model, whose activations it cannot hold.
    """

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        if vllm_config.model_config.dtype == torch.float16:
            raise ValueError("Gemma 3 overflows in float16: serve it with --dtype bfloat16 or float32")
        config = vllm_config.model_config.hf_config
        with without_layers(config):
            super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.model.start_layer, self.model.end_layer, self.model.layers = make_layers(
            config.num_hidden_layers,
            lambda prefix: GRASPGemma3DecoderLayer(vllm_config, prefix),
            prefix=maybe_prefix(prefix, "model.layers"),
        )
