"""Pruned models: the stock decoder layers of transformers, each built from its own layer's configuration.

This file travels inside every checkpoint: see `configuration_grasp.py`.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from transformers import Gemma3ForCausalLM, Gemma3TextModel
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


class GRASPGemma3DecoderLayer(Gemma3DecoderLayer):
    """A stock Gemma 3 layer with its own widths and, where the configuration says so, output biases."""

    def __init__(self, config: GRASPGemma3TextConfig, layer_idx: int) -> None:
        super().__init__(config.per_layer_config[layer_idx], layer_idx)  # type: ignore[arg-type]
        if config.output_bias:
            _add_bias(self.self_attn.o_proj)
            _add_bias(self.mlp.down_proj)
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
