"""Operations that cannot be avoided. Pure functions of shapes; a multiplication and an addition count as two."""

from __future__ import annotations

from optimum_grasprune.serving.fit import ModelShape


def matrix_parameters(shape: ModelShape) -> int:
    """Parameters that every token is multiplied by: those of the layers and of the head; embeddings are looked up."""
    return shape.parameters - shape.replicated - shape.vocabulary + shape.vocab_size * shape.hidden_size


def attention_width(shape: ModelShape) -> int:
    """Query elements of one token, over all layers."""
    return sum(layer.query_heads for layer in shape.layers) * shape.head_dim


def forward_operations(shape: ModelShape, length: int) -> int:
    """One forward pass of one sequence: 2 · parameters · tokens, and causal attention, which meets half of the pairs.

    Scores and weighted values are two products of 2 · tokens² / 2 · width each.
    """
    return 2 * matrix_parameters(shape) * length + 2 * length**2 * attention_width(shape)


def gate_step_operations(shape: ModelShape, length: int) -> int:
    """One step of gate training on one sequence: forward, and backward to activations alone, for weights do not learn.

    A linear map then costs the same backward as forward. Attention's backward has four products where forward has two.
    """
    return 4 * matrix_parameters(shape) * length + 6 * length**2 * attention_width(shape)
