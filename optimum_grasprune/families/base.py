"""What a model family is: names of modules and of configuration fields, as data, and where its units lie.

Nothing else in the project knows such a name. Shape suffixes: U units of one block, F features along an axis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..errors import ModelError, UnsupportedFamilyError
from ..units import FFN, KV, Address, UnitGroup, UnitInventory, UnitKind


@dataclass(frozen=True)
class Slot:
    """Where the units of a block lie in one parameter.

    parameter: its name in the model's state.  axis: the one that units lie along, of a matrix or of a stack of them.
    sections: sizes of the parts that this axis consists of, as query, key and value in a fused projection; each part is
    split evenly among all units, which lie in it one after another. Empty for one part: also where two parts
    alternate, row by row, since a unit's rows are neighbours then.
    """

    parameter: str
    axis: int = 0
    sections: tuple[int, ...] = ()


@dataclass(frozen=True)
class Block:
    """Units of one kind that lie in the same parameters: the FFN channels of a layer, the KV head groups of one.

    units: how many there are, and what each costs.
    slots: the parameters that they run through, those that lead in first, biases among them.
    output: path of the linear map that leads out; its input is what the units compute, neighbouring features for each.
    width: features of a unit in that input.
    shared: parameters of the block that no unit runs through, as norms of heads. They go with the last unit.
    """

    units: UnitGroup
    slots: tuple[Slot, ...]
    output: str
    width: int
    shared: tuple[str, ...] = ()

    @property
    def address(self) -> Address:
        """Where it is."""
        return self.units.address

    @property
    def maps(self) -> tuple[str, ...]:
        """Paths of the linear maps that the units run through, the one that leads out last."""
        weights = (slot.parameter for slot in self.slots)
        return tuple(name.removesuffix(".weight") for name in weights if name.endswith(".weight"))


@dataclass(frozen=True)
class Projection:
    """A linear map into a block. path: below its layer.  parts: what its rows are, in order, as in a fused map."""

    path: str
    parts: tuple[str, ...]


class PrunedClasses(NamedTuple):
    """The classes that pruned models of a family load as: configuration, base model, causal language model."""

    config: type[PreTrainedConfig]
    model: type[PreTrainedModel]
    causal_lm: type[PreTrainedModel]


@dataclass(frozen=True)
class SizeFields:
    """Fields of a configuration that hold sizes."""

    layers: str = "num_hidden_layers"
    query_heads: str = "num_attention_heads"
    kv_heads: str = "num_key_value_heads"
    ffn_channels: str = "intermediate_size"

    @property
    def widths(self) -> tuple[str, str, str]:
        """Those that layers may differ in."""
        return self.query_heads, self.kv_heads, self.ffn_channels


@dataclass(frozen=True)
class Unsupported:
    """A variant of a family that is refused.

    what: its name, in the message, after "with".  holds: whether a configuration is one.
    """

    what: str
    holds: Callable[[PreTrainedConfig], bool]


@dataclass(frozen=True)
class Family:
    """A decoder-only family with one attention and one FFN in each layer; a subclass writes what differs.

    The names of modules are LLaMA's unless others are given, as most families have taken them over.

    name: how the family is called in messages.  dense_types, pruned_type: `config.model_type` of its models.
    code: the module whose classes pruned models are, and `classes` their names, as in `PrunedClasses`.
    layers: path of the decoder layers; all other paths are below one of them.
    attention_inputs: the projections to queries, keys and values ("query", "key", "value" among their parts).
    ffn_inputs: the projections into the FFN.  attention_output, ffn_output: those back to the residual stream.
    head_norms: norms that all heads of a layer share, where a model has them.
    layer_lists: fields of a configuration that hold a value for each layer.
    unsupported: variants of it that are refused.
    blocks_may_go: whether its pruned classes, and the engine's, build a layer without attention or without an FFN.
    norms_after_blocks: whether a norm comes between what a block puts out and the residual stream, or within that.
    """

    name: str
    dense_types: tuple[str, ...]
    pruned_type: str
    code: str
    classes: tuple[str, str, str]
    layers: str = "model.layers"
    attention_inputs: tuple[Projection, ...] = (
        Projection("self_attn.q_proj", ("query",)),
        Projection("self_attn.k_proj", ("key",)),
        Projection("self_attn.v_proj", ("value",)),
    )
    attention_output: str = "self_attn.o_proj"
    ffn_inputs: tuple[Projection, ...] = (Projection("mlp.gate_proj", ("gate",)), Projection("mlp.up_proj", ("up",)))
    ffn_output: str = "mlp.down_proj"
    head_norms: tuple[str, ...] = ("self_attn.q_norm", "self_attn.k_norm")
    sizes: SizeFields = SizeFields()
    layer_lists: tuple[str, ...] = ("layer_types",)
    unsupported: tuple[Unsupported, ...] = ()
    blocks_may_go: bool = False
    norms_after_blocks: Callable[[PreTrainedConfig], bool] = lambda _: False

    @property
    def model_types(self) -> tuple[str, ...]:
        """All of its types, the pruned one last."""
        return (*self.dense_types, self.pruned_type)

    @cached_property
    def pruned(self) -> PrunedClasses:
        """The classes of pruned models, imported when they are asked for."""
        module = import_module(self.code)
        return PrunedClasses(*(getattr(module, name) for name in self.classes))

    def check(self, config: PreTrainedConfig) -> None:
        """Raise ModelError for a configuration of no whole model: without layers, channels or heads.

        Raises UnsupportedFamilyError, naming it, for a variant of the family that is not supported.
        """
        for variant in self.unsupported:
            if variant.holds(config):
                raise UnsupportedFamilyError(f"the model is a {self.name} with {variant.what}, which is not supported")
        for size in (self.sizes.layers, *self.sizes.widths):
            if (value := getattr(config, size, 1)) < 1:
                raise ModelError(f"the model's configuration is of no whole model: {size} is {value}")
        queries, keys = self.query_heads(config), self.kv_heads(config)
        if queries % keys:
            raise ModelError(f"the model has {queries} attention heads, no multiple of its {keys} key-value heads")

    def query_heads(self, config: PreTrainedConfig) -> int:
        """Query heads of a dense layer."""
        return getattr(config, self.sizes.query_heads)

    def kv_heads(self, config: PreTrainedConfig) -> int:
        """KV heads of a dense layer; as many as query heads where the configuration knows no others."""
        return getattr(config, self.sizes.kv_heads, None) or self.query_heads(config)

    def head_dimension(self, config: PreTrainedConfig) -> int:
        """Elements of one attention head."""
        return getattr(config, "head_dim", None) or config.hidden_size // self.query_heads(config)

    def window(self, config: PreTrainedConfig, layer: int) -> int | None:
        """Tokens that the attention of a layer sees at once; None for all.

        `layer_types` says which layers have a window, where the configuration knows them; else all have, or none.
        """
        types = getattr(config, "layer_types", None)
        if types is not None and types[layer] != "sliding_attention":
            return None
        return getattr(config, "sliding_window", None)

    def decoder_layers(self, model: PreTrainedModel) -> list[nn.Module]:
        """The decoder layers, in order."""
        return list(model.get_submodule(self.layers).children())

    def blocks(self, model: PreTrainedModel) -> tuple[Block, ...]:
        """All blocks of prunable units with their costs, read off the real shapes: GQA, biases and pruned layers too.

        They stand in the order of the inventory; a layer may lack a kind.
        """
        return tuple(
            block
            for index in range(len(self.decoder_layers(model)))
            for block in (self._attention(model, index), self._ffn(model, index))
            if block is not None
        )

    def inventory(self, model: PreTrainedModel) -> UnitInventory:
        """All units of the model with their costs."""
        return inventory_of(self.blocks(model))

    def output_projections(self, model: PreTrainedModel) -> dict[Address, nn.Linear]:
        """The map that leads out of each block, in inventory order."""
        return {block.address: linear_at(model, block.output) for block in self.blocks(model)}

    def output_biases(self, model: PreTrainedModel) -> dict[str, Tensor | None]:
        """The bias of what leads out of each block by its name, None for no bias; of blocks that are gone too."""
        parameters = dict(model.named_parameters())
        names = (
            f"{self.path(layer, output)}.bias"
            for layer in range(len(self.decoder_layers(model)))
            for output in (self.attention_output, self.ffn_output)
        )
        return {name: parameters.get(name) for name in names}

    def num_layers(self, config: PreTrainedConfig) -> int:
        """Decoder layers of a model."""
        return getattr(config, self.sizes.layers)

    def pruned_values(self, config: PreTrainedConfig, widths: Mapping[Address, int]) -> dict[str, object]:
        """Fields of a pruned configuration that differ from the dense one's. widths: units of each block that stay.

        The head's size is written out, since no layer can tell it from its own number of heads.
        """
        return {"head_dim": self.head_dimension(config), "per_layer_config": self.layer_widths(config, widths)}

    def layer_widths(self, config: PreTrainedConfig, widths: Mapping[Address, int]) -> dict[int, dict[str, int]]:
        """Each layer's own values of the configuration's fields. widths: units of the blocks that stay."""
        queries_per_kv = self.query_heads(config) // self.kv_heads(config)
        values = {layer: dict.fromkeys(self.sizes.widths, 0) for layer in range(self.num_layers(config))}
        for address, width in widths.items():
            own = values[address.layer]
            if address.kind == FFN:
                own[self.sizes.ffn_channels] = width
            else:
                own[self.sizes.kv_heads] = width
                own[self.sizes.query_heads] = width * queries_per_kv
        return values

    def _attention(self, model: PreTrainedModel, layer: int) -> Block | None:
        queries_per_kv = self.query_heads(model.config) // self.kv_heads(model.config)
        head_dim = self.head_dimension(model.config)
        heads_of = {"query": queries_per_kv, "key": 1, "value": 1}
        first = self.attention_inputs[0]
        if not _has_weight(model, self.path(layer, first.path)):
            return None
        rows_of_unit = head_dim * sum(heads_of[part] for part in first.parts)
        count = linear_at(model, self.path(layer, first.path)).out_features // rows_of_unit
        sections = {
            projection.path: tuple(count * heads_of[part] * head_dim for part in projection.parts)
            for projection in self.attention_inputs
        }
        return self._block(model, layer, KV, count, sections, self.attention_output, head_dim)

    def _ffn(self, model: PreTrainedModel, layer: int) -> Block | None:
        if not _has_weight(model, self.path(layer, self.ffn_output)):
            return None
        count = linear_at(model, self.path(layer, self.ffn_output)).in_features
        sections = {projection.path: (count,) * len(projection.parts) for projection in self.ffn_inputs}
        return self._block(model, layer, FFN, count, sections, self.ffn_output, 1)

    def _block(
        self,
        model: PreTrainedModel,
        layer: int,
        kind: UnitKind,
        count: int,
        sections: Mapping[str, tuple[int, ...]],
        output: str,
        cached_width: int,
    ) -> Block | None:
        if not count:
            return None
        slots: list[Slot] = []
        cost = 0
        for name, parts in sections.items():
            path = self.path(layer, name)
            for parameter, tensor in linear_at(model, path).named_parameters(prefix=path, recurse=False):
                slots.append(Slot(parameter, 0, parts if len(parts) > 1 else ()))
                cost += tensor.numel()
        path = self.path(layer, output)
        linear = linear_at(model, path)
        # The output projection's bias belongs to no unit: it stays whatever is cut.
        slots.append(Slot(f"{path}.weight", 1))
        cost += linear.weight.numel()
        units = UnitGroup(layer, kind, count, cost // count, kind.cached_vectors * cached_width)
        norms = [self.path(layer, name) for name in self.head_norms] if kind == KV else []
        shared = tuple(f"{norm}.weight" for norm in norms if _has_weight(model, norm))
        return Block(units, tuple(slots), path, linear.in_features // count, shared)

    def path(self, layer: int, name: str) -> str:
        """Full path of a module of a layer."""
        return f"{self.layers}.{layer}.{name}"


def unit_features(size: int, count: int, sections: Sequence[int] = ()) -> Tensor:
    """Indices along an axis of this size that belong to each of `count` units; shape (U, F), int64.

    sections: as in `Slot`.
    """
    parts, start = [], 0
    for section in sections or (size,):
        parts.append(torch.arange(start, start + section, device="cpu").view(count, -1))
        start += section
    return torch.cat(parts, dim=1)


def inventory_of(blocks: Iterable[Block]) -> UnitInventory:
    """All units of some blocks."""
    return UnitInventory(tuple(block.units for block in blocks))


def linear_at(model: nn.Module, path: str) -> nn.Linear:
    """The linear map at a path."""
    return model.get_submodule(path)  # type: ignore[return-value]


def _has_weight(model: nn.Module, path: str) -> bool:
    """Whether there is a module at a path, and more of it than a bias."""
    try:
        return getattr(model.get_submodule(path), "weight", None) is not None
    except AttributeError:
        return False


def linears(model: nn.Module, blocks: Iterable[Block]) -> dict[str, nn.Linear]:
    """Every linear map that a unit runs through, by its path, each once, in order."""
    return {path: linear_at(model, path) for block in blocks for path in block.maps}
