"""OPT with different widths in every layer, from vLLM's stock layers of OPT.

Its attention takes the size of a head from the number of heads, so that ours has a constructor of its own.
"""

from __future__ import annotations

import copy

from torch import nn
from transformers import PreTrainedConfig
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.linear import QKVParallelLinear, RowParallelLinear
from vllm.model_executor.models.opt import OPTAttention, OPTDecoderLayer, OPTForCausalLM
from vllm.model_executor.models.utils import make_layers, maybe_prefix

from .layers import finish, forget_attention, layer_config, without_layers


class GRASPOPTAttention(OPTAttention):
    """The stock attention with a size of heads that does not depend on their number."""

    def __init__(self, config: PreTrainedConfig, vllm_config: VllmConfig, prefix: str) -> None:
        nn.Module.__init__(self)
        heads, quantised = config.num_attention_heads, {"quant_config": vllm_config.quant_config}
        self.embed_dim, self.head_dim = config.hidden_size, config.head_dim
        self.num_heads = heads // get_tensor_model_parallel_world_size()
        self.scaling = self.head_dim**-0.5
        width, bias = heads * self.head_dim, config.enable_bias
        self.qkv_proj = QKVParallelLinear(
            self.embed_dim, self.head_dim, heads, bias=bias, prefix=f"{prefix}.qkv_proj", **quantised
        )
        self.out_proj = RowParallelLinear(width, self.embed_dim, bias=bias, prefix=f"{prefix}.out_proj", **quantised)
        self.attn = Attention(
            self.num_heads,
            self.head_dim,
            scale=self.scaling,
            cache_config=vllm_config.cache_config,
            prefix=f"{prefix}.attn",
            **quantised,
        )


class GRASPOPTDecoderLayer(OPTDecoderLayer):
    """A stock layer with attention of its own width, what is gone left out."""

    def __init__(self, vllm_config: VllmConfig, prefix: str = "") -> None:
        whole = vllm_config.model_config.hf_config
        config = layer_config(whole, prefix)
        stock = copy.copy(config)
        stock.num_attention_heads = whole.num_attention_heads
        super().__init__(stock, vllm_config.cache_config, vllm_config.quant_config, prefix=prefix)
        forget_attention(vllm_config, prefix)
        self.self_attn = GRASPOPTAttention(config, vllm_config, f"{prefix}.self_attn")
        finish(self, vllm_config, prefix)


class GRASPOPTForCausalLM(OPTForCausalLM):
    """The stock OPT over those layers, which are put in afterwards: it takes no class for them."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        config = vllm_config.model_config.hf_config
        with without_layers(config):
            super().__init__(vllm_config=vllm_config, prefix=prefix)
        decoder = self.model.decoder
        decoder.start_layer, decoder.end_layer, decoder.layers = make_layers(
            config.num_hidden_layers,
            lambda prefix: GRASPOPTDecoderLayer(vllm_config, prefix),
            prefix=maybe_prefix(prefix, "model.decoder.layers"),
        )
