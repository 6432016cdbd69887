"""Phi-3 and Phi-4 with different widths in every layer: to vLLM, LLaMA with fused matrices in the checkpoint."""

from __future__ import annotations

from torch import nn
from vllm.config import VllmConfig
from vllm.model_executor.models.phi3 import Phi3ForCausalLM

from .llama import GRASPLlamaDecoderLayer


class GRASPPhi3ForCausalLM(Phi3ForCausalLM):
    """The stock Phi-3 over layers with their own widths."""

    def __init__(
        self, *, vllm_config: VllmConfig, prefix: str = "", layer_type: type[nn.Module] = GRASPLlamaDecoderLayer
    ) -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix, layer_type=layer_type)
