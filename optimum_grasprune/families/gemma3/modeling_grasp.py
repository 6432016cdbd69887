"""Pruned models: the stock decoder layers of transformers, each built from its own layer's configuration.

This file travels inside every checkpoint: see `configuration_grasp.py`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import Gemma3ForCausalLM, Gemma3TextModel, PreTrainedConfig
from transformers.cache_utils import Cache, DynamicLayer
from transformers.models.gemma3.modeling_gemma3 import Gemma3DecoderLayer

from .configuration_grasp import GRASPGemma3TextConfig


@contextmanager
def _without_layers(config: GRASPGemma3TextConfig) -> Iterator[None]:
    # The stock constructors build their layers from one configuration for all. While it asks for no layer they build
    # everything else, so that no constructor or forward pass has to be copied.
    layers = config.num_hidden_layers
    config.num_hidden_layers = 0
    try:
        yield
    finally:
        config.num_hidden_layers = layers


def _add_bias(linear: nn.Linear) -> None:
    # Made from the weight, so that dtype and device (meta while a checkpoint is loaded) are the stock constructor's.
    if getattr(linear, "bias", None) is None:  # torch's annotation says that there always is one
        linear.bias = nn.Parameter(linear.weight.new_zeros(linear.out_features))


class _OnlyBias(nn.Module):
    # A linear map without inputs: zero, or what its bias says, which belongs to no unit.
    def __init__(self, like: nn.Linear) -> None:
        super().__init__()
        biased = getattr(like, "bias", None) is not None
        self.bias = nn.Parameter(torch.zeros_like(like.bias)) if biased else None

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        nothing = torch.zeros_like(hidden_states)
        return nothing if self.bias is None else nothing + self.bias


class _KeylessLayer(DynamicLayer):
    # The stock layer of a cache takes one in which no head keeps anything for one that has seen no token.
    def get_seq_length(self) -> int:
        return self.keys.shape[-2] if self.is_initialized else 0  # type: ignore[union-attr]


class _NoHeads(nn.Module):
    # In place of attention of which no head stays. Positions and masks are told by the length of a layer's cache, maybe
    # this one's, so that it is told of the tokens: keys and values of no heads, which take no memory. (Where the source
    # has a class of modules named for attention, transformers would not let the attention implementation be changed.)
    def __init__(self, output: nn.Linear, config: PreTrainedConfig, layer_idx: int) -> None:
        super().__init__()
        self.o_proj, self.config, self.layer_idx = _OnlyBias(output), config, layer_idx

    def forward(
        self, hidden_states: torch.Tensor, past_key_values: Cache | None = None, **_: Any
    ) -> tuple[torch.Tensor, None]:
        if past_key_values is not None:
            nothing = hidden_states.new_empty(len(hidden_states), 0, hidden_states.shape[1], 1)
            past_key_values.update(nothing, nothing, self.layer_idx)
            layer = past_key_values.layers[self.layer_idx]
            if type(layer) is DynamicLayer:
                layer.__class__ = _KeylessLayer
        return self.o_proj(hidden_states), None


class _NoChannels(nn.Module):
    # In place of an FFN of which no channel stays.
    def __init__(self, output: nn.Linear) -> None:
        super().__init__()
        self.down_proj = _OnlyBias(output)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.down_proj(hidden_states)


def _buildable(own: Any) -> Any:
    # Stock constructors want at least one of everything; what is of no unit is taken out again.
    if not own.num_key_value_heads:
        own.num_attention_heads = own.num_key_value_heads = 1
    own.intermediate_size = own.intermediate_size or 1
    return own


class GRASPGemma3DecoderLayer(Gemma3DecoderLayer):
    """A stock Gemma 3 layer with its own widths, 0 for no such block, and output biases where asked for."""

    def __init__(self, config: GRASPGemma3TextConfig, layer_idx: int) -> None:
        own = config.per_layer_config[layer_idx]
        attends, feeds = own.num_key_value_heads > 0, own.intermediate_size > 0
        super().__init__(_buildable(own), layer_idx)
        if config.output_bias:
            _add_bias(self.self_attn.o_proj)
            _add_bias(self.mlp.down_proj)
        if not attends:
            self.self_attn = _NoHeads(self.self_attn.o_proj, own, layer_idx)  # type: ignore[assignment]
        if not feeds:
            self.mlp = _NoChannels(self.mlp.down_proj)  # type: ignore[assignment]
        # The widths are built in by now; what is read later (the attention implementation) may change on the model.
        self.self_attn.config = config


class GRASPGemma3TextModel(Gemma3TextModel):
    """The decoder stack."""

    config_class = GRASPGemma3TextConfig

    def __init__(self, config: GRASPGemma3TextConfig) -> None:
        with _without_layers(config):
            super().__init__(config)
        self.layers = nn.ModuleList(GRASPGemma3DecoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.post_init()


class GRASPGemma3ForCausalLM(Gemma3ForCausalLM):
    """The language model; `forward` and `generate` are Gemma 3's own."""

    config_class = GRASPGemma3TextConfig

    def __init__(self, config: GRASPGemma3TextConfig) -> None:
        with _without_layers(config):
            super().__init__(config)
        self.model = GRASPGemma3TextModel(config)
        self.post_init()


GRASPGemma3TextModel.register_for_auto_class("AutoModel")
GRASPGemma3ForCausalLM.register_for_auto_class("AutoModelForCausalLM")
