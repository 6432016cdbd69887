"""Reading sizes off a model, for what fits, for limits and for inspection; it may be on the meta device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from ..families import Family
from ..loading import count_parameters
from .bounds import Shape
from .fit import LayerWidths, ModelShape


@dataclass(frozen=True)
class LayerFacts:
    """What the units of a layer are: their numbers, their parameters, and elements of a token in the KV cache."""

    ffn_channels: int
    kv_heads: int
    parameters: int
    kv_elements: int


def layers_of(model: PreTrainedModel, family: Family) -> tuple[LayerFacts, ...]:
    """The units of every layer, first layer first."""
    groups = {(group.layer, group.kind): group for group in family.inventory(model).groups}
    layers = []
    for layer in sorted({layer for layer, _ in groups}):
        ffn, kv = groups[layer, "ffn"], groups[layer, "kv"]
        parameters = ffn.count * ffn.cost + kv.count * kv.cost
        layers.append(LayerFacts(ffn.count, kv.count, parameters, kv.count * kv.kv_width))
    return tuple(layers)


def model_shape(model: PreTrainedModel, family: Family) -> ModelShape:
    """All that memory depends on."""
    groups = {(group.layer, group.kind): group for group in family.inventory(model).groups}
    head_dim = groups[0, "kv"].kv_width // 2
    layers = []
    for index, layer in enumerate(family.decoder_layers(model)):
        query = family.coupling(layer, "kv").inputs[0]
        widths = query.out_features // head_dim, groups[index, "kv"].count, groups[index, "ffn"].count
        layers.append(LayerWidths(*widths))
    kv_head = head_dim * sum(
        linear.in_features + (linear.bias is not None)
        for linear in family.coupling(next(family.decoder_layers(model)), "kv").inputs[1:]
    )
    query_head = (groups[0, "kv"].cost - kv_head) // (layers[0].query_heads // layers[0].kv_heads)
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    tables = {parameter for module in ends for parameter in module.parameters()}  # a set: tied ones are one tensor
    vocabulary = sum(table.numel() for table in tables)
    prunable = sum(group.count * group.cost for group in groups.values())
    return ModelShape(
        layers=tuple(layers),
        hidden_size=model.config.hidden_size,
        vocab_size=model.config.vocab_size,
        head_dim=head_dim,
        query_head=query_head,
        kv_head=kv_head,
        ffn_channel=groups[0, "ffn"].cost,
        vocabulary=vocabulary,
        replicated=sum(parameter.numel() for parameter in model.parameters()) - vocabulary - prunable,
    )


def work_shape(model: PreTrainedModel, family: Family) -> Shape:
    """All that the work of a step depends on."""
    table: Any = model.get_input_embeddings()
    embedding, head = table.weight, model.get_output_embeddings().weight
    queries = (family.coupling(layer, "kv").inputs[0].out_features for layer in family.decoder_layers(model))
    return Shape(
        parameters=count_parameters(model),
        embedding=embedding.numel(),
        head=head.numel(),
        tied=embedding is head,
        query_width=sum(queries),
        kv_width=family.inventory(model).total_kv_width,
    )


def parameters_beside_layers(shape: Shape, prunable: int) -> dict[str, int]:
    """The parameters that no unit runs through, by their place; those places that have any."""
    head = 0 if shape.tied else shape.head
    places = {"embedding": shape.embedding, "head": head}
    places["norms_and_biases"] = shape.parameters - prunable - shape.embedding - head
    return {name: count for name, count in places.items() if count}
