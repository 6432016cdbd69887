"""What a model family is: the names of its modules, as data. Nothing else in the project knows a module's name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..units import KINDS, Kind, UnitGroup, UnitInventory


@dataclass(frozen=True)
class Coupling:
    """The linear maps of one layer that a kind of unit runs through.

    inputs: maps whose output rows belong to the unit.  output: the map whose input columns belong to it.
    """

    inputs: tuple[nn.Linear, ...]
    output: nn.Linear


@dataclass(frozen=True)
class Family:
    """Module names of a decoder-only family; paths below `layers` are relative to one layer.

    name: how the family is called in messages.  model_types: `config.model_type` of its models, pruned ones included.
    attention_inputs: query, key and value projection.  attention_output, ffn_output: the projections back to the
    residual stream.  ffn_inputs: the projections into the FFN.
    """

    name: str
    model_types: tuple[str, ...]
    layers: str
    attention_inputs: tuple[str, str, str]
    attention_output: str
    ffn_inputs: tuple[str, ...]
    ffn_output: str

    def decoder_layers(self, model: PreTrainedModel) -> Iterator[nn.Module]:
        """The decoder layers, in order."""
        yield from model.get_submodule(self.layers).children()

    def coupling(self, layer: nn.Module, kind: Kind) -> Coupling:
        """The linear maps that units of this kind run through in this layer."""
        inputs, output = self._names(kind)
        return Coupling(tuple(layer.get_submodule(name) for name in inputs), layer.get_submodule(output))  # type: ignore[arg-type, misc]

    def output_projections(self, model: PreTrainedModel) -> dict[tuple[int, Kind], nn.Linear]:
        """The output projection of every layer and kind, in inventory order."""
        return {
            (index, kind): self.coupling(layer, kind).output
            for index, layer in enumerate(self.decoder_layers(model))
            for kind in KINDS
        }

    def input_paths(self, layer: int, kind: Kind) -> tuple[str, ...]:
        """Full module paths of the maps whose rows belong to units of this kind."""
        return tuple(f"{self.layers}.{layer}.{name}" for name in self._names(kind)[0])

    def output_path(self, layer: int, kind: Kind) -> str:
        """Full module path of the map whose columns belong to units of this kind."""
        return f"{self.layers}.{layer}.{self._names(kind)[1]}"

    def _names(self, kind: Kind) -> tuple[tuple[str, ...], str]:
        if kind == "ffn":
            return self.ffn_inputs, self.ffn_output
        return self.attention_inputs, self.attention_output

    def inventory(self, model: PreTrainedModel) -> UnitInventory:
        """All units of the model with their costs, read off the real shapes: GQA, biases and pruned layers included."""
        head_dim = head_dimension(model.config)
        groups: list[UnitGroup] = []
        for index, layer in enumerate(self.decoder_layers(model)):
            key = self.coupling(layer, "kv").inputs[1]
            counts: dict[Kind, int] = {
                "kv": key.out_features // head_dim,
                "ffn": self.coupling(layer, "ffn").output.in_features,
            }
            for kind, count in counts.items():
                cost = _parameters(self.coupling(layer, kind)) // count
                groups.append(UnitGroup(index, kind, count, cost, 2 * head_dim if kind == "kv" else 0))
        return UnitInventory(tuple(groups))


def head_dimension(config: PreTrainedConfig) -> int:
    """Elements of one attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _parameters(coupling: Coupling) -> int:
    # The output projection's bias belongs to no unit: it stays whatever is cut.
    total = coupling.output.weight.numel()
    for linear in coupling.inputs:
        total += linear.weight.numel() + (0 if linear.bias is None else linear.bias.numel())
    return total
