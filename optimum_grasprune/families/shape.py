"""The sizes of a model: the one place that reads them off its modules. Memory, work and widths follow from them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..errors import ModelError
from ..units import FFN, KV
from .base import Block, Family, linear_at


@dataclass(frozen=True)
class LayerShape:
    """The widths of one decoder layer; 0 where it has none. window: tokens that it sees at once; None for all."""

    query_heads: int
    kv_heads: int
    ffn_channels: int
    window: int | None = None


@dataclass(frozen=True)
class ModelShape:
    """All that memory and work depend on; sizes are numbers of parameters.

    head_dim: elements of a head.  query_head, kv_head, ffn_channel: cost of one of them, biases included: a query head
    has rows of the query projection and columns of the output projection, a KV head rows of those to keys and values.
    embedding, head: elements of the token embedding and of the LM head; tied: whether they are one matrix.
    replicated: all that every device holds whole: norms, biases of output projections, and the next two.
    positions: learned ones.  projections: of embeddings to the hidden size and back, where they have another.
    """

    layers: tuple[LayerShape, ...]
    hidden_size: int
    vocab_size: int
    head_dim: int
    query_head: int
    kv_head: int
    ffn_channel: int
    embedding: int
    head: int
    tied: bool
    replicated: int
    positions: int = 0
    projections: int = 0

    @property
    def vocabulary(self) -> int:
        """Embedding and head, tied ones once."""
        return self.embedding if self.tied else self.embedding + self.head

    @property
    def parameters(self) -> int:
        """All parameters, tied ones once."""
        return self.vocabulary + self.replicated + sum(map(self.layer_parameters, self.layers))

    @property
    def query_width(self) -> int:
        """Query heads × elements of a head, summed over the layers."""
        return self.head_dim * sum(layer.query_heads for layer in self.layers)

    @property
    def kv_width(self) -> int:
        """Key and value elements of one token, summed over the layers."""
        return sum(map(self.kv_elements, self.layers))

    def kv_elements(self, layer: LayerShape) -> int:
        """Elements that one token takes in the KV cache of a layer."""
        return KV.cached_vectors * self.head_dim * layer.kv_heads

    def layer_parameters(self, layer: LayerShape) -> int:
        """Prunable parameters of a layer."""
        heads = layer.query_heads * self.query_head + layer.kv_heads * self.kv_head
        return heads + layer.ffn_channels * self.ffn_channel


def model_shape(model: PreTrainedModel, family: Family) -> ModelShape:
    """Read a model's shape off its modules; it may be on the meta device. ModelError where no layer has attention."""
    blocks = family.blocks(model)
    if not any(block.units.kv_width for block in blocks):
        raise ModelError(
            "the model has no attention in any layer: it sees one token at a time, and no engine serves it"
        )
    head_dim = family.head_dimension(model.config)
    queries_per_kv = family.query_heads(model.config) // family.kv_heads(model.config)
    layers = tuple(
        _layer(blocks, index, queries_per_kv, family.window(model.config, index))
        for index in range(len(family.decoder_layers(model)))
    )
    query_head, kv_head = _head_costs(model, family, blocks, head_dim)
    ffn_channel = next((block.units.cost for block in blocks if block.units.kind == FFN), 0)
    ends: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    table, head = (module.weight for module in ends)
    vocabulary = table.numel() if head is table else table.numel() + head.numel()
    prunable = sum(block.units.count * block.units.cost for block in blocks)
    everything = sum(parameter.numel() for parameter in model.parameters())
    positions, projections = _beside_layers(model, family, table)
    return ModelShape(
        layers=layers,
        hidden_size=model.config.hidden_size,
        vocab_size=model.config.vocab_size,
        head_dim=head_dim,
        query_head=query_head,
        kv_head=kv_head,
        ffn_channel=ffn_channel,
        embedding=table.numel(),
        head=head.numel(),
        tied=head is table,
        replicated=everything - vocabulary - prunable,
        positions=positions,
        projections=projections,
    )


def layer_shape(own: PreTrainedConfig, family: Family) -> LayerShape:
    """The widths that a layer's own configuration says."""
    channels = getattr(own, family.sizes.ffn_channels)
    return LayerShape(family.query_heads(own), family.kv_heads(own), channels)


def splits(layer: LayerShape, size: int) -> bool:
    """Whether vLLM can split a layer among `size` tensor-parallel ranks.

    Query heads and FFN channels must divide by it; KV heads must too, or divide it where there are fewer of them.
    """
    heads = layer.kv_heads
    shared_evenly = heads % size == 0 if heads >= size or not heads else size % heads == 0
    return shared_evenly and layer.query_heads % size == 0 and layer.ffn_channels % size == 0


def tensor_parallel_sizes(layers: Iterable[LayerShape]) -> list[int]:
    """The tensor-parallel sizes that split every layer, ascending; 1 is always among them."""
    layers = tuple(layers)
    common = math.gcd(*(width for layer in layers for width in (layer.query_heads, layer.ffn_channels)))
    lower = [size for size in range(1, math.isqrt(common) + 1) if common % size == 0]
    divisors = sorted({*lower, *(common // size for size in lower)})
    return [size for size in divisors if all(splits(layer, size) for layer in layers)]


def _layer(blocks: Iterable[Block], index: int, queries_per_kv: int, window: int | None) -> LayerShape:
    widths = {block.units.kind: block.units.count for block in blocks if block.units.layer == index}
    heads = widths.get(KV, 0)
    return LayerShape(heads * queries_per_kv, heads, widths.get(FFN, 0), window)


def _beside_layers(model: PreTrainedModel, family: Family, table: Tensor) -> tuple[int, int]:
    """Elements of the tables of positions, and of other matrices outside of the layers. table: the tokens' own."""
    ours = {id(parameter) for layer in family.decoder_layers(model) for parameter in layer.parameters()}
    head: Any = model.get_output_embeddings()
    ours |= {id(table), id(head.weight)}
    tables, matrices = 0, 0
    for module in model.modules():
        weight = module._parameters.get("weight")
        if weight is None or id(weight) in ours or weight.dim() < 2:
            continue
        tables += weight.numel() * isinstance(module, nn.Embedding)
        matrices += weight.numel() * (not isinstance(module, nn.Embedding))
    return tables, matrices


def _head_costs(model: PreTrainedModel, family: Family, blocks: Iterable[Block], head_dim: int) -> tuple[int, int]:
    """Parameters of a query head and of a KV head, read off the first attention."""
    attention = next((block for block in blocks if block.units.kind == KV), None)
    if attention is None:
        return 0, 0
    rows = {"query": 0, "key": 0, "value": 0}
    for projection in family.attention_inputs:
        linear = linear_at(model, family.path(attention.units.layer, projection.path))
        for part in projection.parts:
            rows[part] = linear.in_features + (linear.bias is not None)
    columns = linear_at(model, attention.output).out_features
    return head_dim * (rows["query"] + columns), head_dim * (rows["key"] + rows["value"])
