"""Pruned models: the stock decoder layers of transformers, each built from its own layer's configuration.

This file travels inside every checkpoint: see `configuration_grasp.py`.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from transformers import MinistralForCausalLM, MinistralModel
from transformers.models.ministral.modeling_ministral import MinistralDecoderLayer

from .configuration_grasp import GRASPMinistralConfig


@contextmanager
def _without_layers(config: GRASPMinistralConfig) -> Iterator[None]:
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


class GRASPMinistralDecoderLayer(MinistralDecoderLayer):
    """A stock Ministral layer with its own widths and, where the configuration says so, output biases."""

    def __init__(self, config: GRASPMinistralConfig, layer_idx: int) -> None:
        super().__init__(config.per_layer_config[layer_idx], layer_idx)  # type: ignore[arg-type]
        if config.output_bias:
            _add_bias(self.self_attn.o_proj)
            _add_bias(self.mlp.down_proj)
        # The widths are built in by now; what is read later (the attention implementation) may change on the model.
        self.self_attn.config = config


class GRASPMinistralModel(MinistralModel):
    """The decoder stack."""

    config_class = GRASPMinistralConfig

    def __init__(self, config: GRASPMinistralConfig) -> None:
        with _without_layers(config):
            super().__init__(config)
        self.layers = nn.ModuleList(
            GRASPMinistralDecoderLayer(config, index) for index in range(config.num_hidden_layers)
        )
        self.post_init()


class GRASPMinistralForCausalLM(MinistralForCausalLM):
    """The language model; `forward` and `generate` are Ministral's own."""

    config_class = GRASPMinistralConfig

    def __init__(self, config: GRASPMinistralConfig) -> None:
        with _without_layers(config):
            super().__init__(config)
        self.model = GRASPMinistralModel(config)
        self.post_init()


GRASPMinistralModel.register_for_auto_class("AutoModel")
GRASPMinistralForCausalLM.register_for_auto_class("AutoModelForCausalLM")
