"""What memory and work depend on, read off a model without weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedModel
from typing_extensions import Self

from ..families import Block, Family, linear_at
from ..units import FFN, KV


@dataclass(frozen=True)
class LayerSizes:
    """One decoder layer.

    parameters: all of them.  prunable: those of units.  query, kv: elements of one token's queries, and of its keys.
    channels: of the FFN.  ffn_parts: maps into the FFN, 2 where one gates the other.
    norms: over the hidden state.  head_norms: over heads, elements of one token that go through them.
    inputs, outputs: features of all maps, summed.  leading_out: elements of the maps that lead out of blocks.
    """

    parameters: int
    prunable: int
    query: int
    kv: int
    channels: int
    ffn_parts: int
    norms: int
    head_norms: int
    inputs: int
    outputs: int
    leading_out: int

    def kept(self, share: float) -> Self:
        """With a share of its units."""
        names = ("prunable", "query", "kv", "channels", "head_norms", "leading_out")
        widths = {name: round(getattr(self, name) * share) for name in names}
        return replace(self, **widths, parameters=self.parameters - self.prunable + widths["prunable"])


@dataclass(frozen=True)
class Sizes:
    """A model. Numbers of elements; embedding and head are one matrix where `tied`.

    outside: parameters outside of the layers, embedding and head among them.  units: of all layers.
    """

    layers: tuple[LayerSizes, ...]
    hidden: int
    vocabulary: int
    embedding: int
    head: int
    tied: bool
    outside: int
    units: int

    @classmethod
    def of(cls, model: PreTrainedModel, family: Family) -> Self:
        """Of a model, which may be on the meta device."""
        blocks = family.blocks(model)
        layers = family.decoder_layers(model)
        ends: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
        table, head = (module.weight for module in ends)
        of_layers = tuple(
            _layer(model, family, index, [block for block in blocks if block.units.layer == index])
            for index in range(len(layers))
        )
        everything = sum(parameter.numel() for parameter in model.parameters())
        return cls(
            layers=of_layers,
            hidden=model.config.hidden_size,
            vocabulary=model.config.vocab_size,
            embedding=table.numel(),
            head=head.numel(),
            tied=table is head,
            outside=everything - sum(layer.parameters for layer in of_layers),
            units=sum(block.units.count for block in blocks),
        )

    @property
    def parameters(self) -> int:
        """All parameters, tied ones once."""
        return self.outside + self.in_layers

    @property
    def in_layers(self) -> int:
        """Parameters of all decoder layers."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def prunable(self) -> int:
        """Parameters of units."""
        return sum(layer.prunable for layer in self.layers)

    @property
    def largest_layer(self) -> LayerSizes:
        """The one with most parameters."""
        return max(self.layers, key=lambda layer: layer.parameters)

    def kept(self, share: float) -> Self:
        """With a share of the units of every layer."""
        return replace(self, layers=tuple(layer.kept(share) for layer in self.layers), units=round(self.units * share))


def _layer(model: PreTrainedModel, family: Family, index: int, blocks: list[Block]) -> LayerSizes:
    layer = family.decoder_layers(model)[index]
    of_kind = {block.units.kind: block for block in blocks}
    attention, ffn = of_kind.get(KV), of_kind.get(FFN)
    maps = [linear_at(model, path) for block in blocks for path in dict.fromkeys(block.maps)]
    leading = [linear_at(model, block.output) for block in blocks]
    query = 0 if attention is None else attention.width * attention.units.count
    kv = 0 if attention is None else attention.units.count * attention.units.kv_width // KV.cached_vectors
    shared = sum(len(block.shared) for block in blocks)
    scales = sum(name.endswith("weight") and each.dim() == 1 for name, each in layer.named_parameters())
    return LayerSizes(
        parameters=sum(parameter.numel() for parameter in layer.parameters()),
        prunable=sum(block.units.count * block.units.cost for block in blocks),
        query=query,
        kv=kv,
        channels=0 if ffn is None else ffn.units.count,
        ffn_parts=sum(len(projection.parts) for projection in family.ffn_inputs),
        norms=scales - shared,
        head_norms=query + kv if shared else 0,
        inputs=sum(linear.in_features for linear in maps),
        outputs=sum(linear.out_features for linear in maps),
        leading_out=sum(linear.weight.numel() for linear in leading),
    )
