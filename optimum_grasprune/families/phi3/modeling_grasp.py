"""Pruned models: the stock decoder layers of transformers, each built from its own layer's configuration.

This file travels inside every checkpoint: see `configuration_grasp.py`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import Phi3ForCausalLM, Phi3Model, PreTrainedModel
from transformers.models.phi3.modeling_phi3 import Phi3DecoderLayer

from .configuration_grasp import GRASPPhi3Config


@contextmanager
def _without_layers(config: GRASPPhi3Config) -> Iterator[None]:
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


class GRASPPhi3DecoderLayer(Phi3DecoderLayer):
    """A stock Phi-3 layer with its own widths and, where the configuration says so, output biases."""

    def __init__(self, config: GRASPPhi3Config, layer_idx: int) -> None:
        super().__init__(config.per_layer_config[layer_idx], layer_idx)  # type: ignore[arg-type]
        if config.output_bias:
            _add_bias(self.self_attn.o_proj)
            _add_bias(self.mlp.down_proj)


class _LayersFollow(PreTrainedModel):
    # Attention splits the fused projection by its own configuration's number of heads each time that it runs, so that
    # it cannot be given the model's, from which it would take the attention implementation.
    def set_attn_implementation(self, *arguments: Any, **options: Any) -> None:
        """Change the attention implementation, of the layers too."""
        super().set_attn_implementation(*arguments, **options)
        layers: Any = self.base_model.layers
        for layer in layers:
            layer.self_attn.config._attn_implementation_internal = self.config._attn_implementation


class GRASPPhi3Model(_LayersFollow, Phi3Model):
    """The decoder stack."""

    config_class = GRASPPhi3Config

    def __init__(self, config: GRASPPhi3Config) -> None:
        with _without_layers(config):
            super().__init__(config)
        self.layers = nn.ModuleList(GRASPPhi3DecoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.post_init()


class GRASPPhi3ForCausalLM(_LayersFollow, Phi3ForCausalLM):
    """The language model; `forward` and `generate` are Phi-3's own."""

    config_class = GRASPPhi3Config

    def __init__(self, config: GRASPPhi3Config) -> None:
        with _without_layers(config):
            super().__init__(config)
        self.model = GRASPPhi3Model(config)
        self.post_init()


GRASPPhi3Model.register_for_auto_class("AutoModel")
GRASPPhi3ForCausalLM.register_for_auto_class("AutoModelForCausalLM")
