"""Bytes of what a step computes, beside the weights. Pure arithmetic; what is saved is what autograd keeps.

The constants were read off what torch keeps of real steps (`tests/estimate/test_measured.py` compares), for attention
without a matrix of weights (SDPA) and norms that compute in fp32, as transformers' do.

Names: tokens are those of all sequences of a step, element the bytes of a number in the model's dtype.
"""

from __future__ import annotations

from enum import Enum

from ..execution.chunks import MOST_LOGITS
from .sizes import LayerSizes, Sizes

FP32, FP64 = 4, 8


class Trained(Enum):
    """What gradients are taken of."""

    UNITS = "multipliers of units"
    MAPS = "multipliers of the rows and columns of all maps"
    ADAPTERS = "low-rank updates of all maps"
    WEIGHTS = "all weights of the layers"


def logits(tokens: int, vocabulary: int, element: int, *, backward: bool = False, teacher: bool = False) -> int:
    """Everything as wide as the vocabulary that is there at once, for a cross-entropy in fp32 over all tokens.

    Forward: logits, their fp32 copy and its log-softmax. Backward: the log-softmax and two gradients. With a teacher:
    both logits, both log-softmaxes, the teacher's probabilities, and two products. Of a large vocabulary they are there
    for as many tokens as `chunks.MOST_LOGITS` says. A CPU takes less of what does not fit its cache (`loss.IN_CACHE`),
    which is not counted on.
    """
    tokens = min(tokens, max(1, MOST_LOGITS // vocabulary))
    forward = element + FP32 + (FP32 if element < FP32 else 0)
    if teacher:
        forward = 2 * element + 5 * FP32
    return tokens * vocabulary * (max(forward, element + 3 * FP32) if backward or teacher else forward)


def saved_in_layer(layer: LayerSizes, hidden: int, tokens: int, element: int, trained: Trained) -> int:
    """What a layer's backward pass needs of its forward pass.

    Of maps with fixed weights nothing; queries, keys, values and the output of attention; of norms their input in fp32;
    of the FFN what enters and leaves the activation, both factors of the product, which is multiplied by gates. Without
    a second factor it is a ReLU, which needs what leaves it alone.
    """
    numbers = 2 * layer.query + 2 * layer.kv + layer.channels * (4 if layer.ffn_parts > 1 else 1)
    if trained is Trained.MAPS:  # also what enters and leaves each map before it is multiplied
        numbers += layer.query + 2 * layer.kv + layer.ffn_parts * layer.channels + 4 * hidden
    if trained is Trained.WEIGHTS:  # what enters each map, and what enters the norms' weights
        numbers += 4 * hidden
    if trained is Trained.ADAPTERS:
        numbers += 2 * hidden
    norms = FP32 * (layer.norms * hidden + layer.head_norms)
    copies = FP32 * layer.inputs if trained is Trained.ADAPTERS and element < FP32 else 0
    return tokens * (element * numbers + norms + copies)


def passing_through_layer(layer: LayerSizes, hidden: int, tokens: int, element: int) -> int:
    """What one layer has in memory at once where nothing is saved: the FFN's activations, a few hidden states."""
    return tokens * (element * (3 * max(layer.channels, layer.query) + 3 * hidden) + FP32 * hidden)


def moments(layer: LayerSizes, tokens: int) -> int:
    """What the moments of the widest input take while a sequence is added: three copies in fp64."""
    return 3 * FP64 * tokens * max(layer.channels, layer.query)


def training_step(
    sizes: Sizes, tokens: int, element: int, trained: Trained, *, checkpointing: bool, teacher: bool = False
) -> int:
    """Activations of a forward and backward pass, the logits among them.

    checkpointing: only what enters each layer is kept, and one layer at a time is computed again.
    """
    hidden = sizes.hidden
    saved = [saved_in_layer(layer, hidden, tokens, element, trained) for layer in sizes.layers]
    ends = logits(tokens, sizes.vocabulary, element, backward=True, teacher=teacher)
    through = max(passing_through_layer(layer, hidden, tokens, element) for layer in sizes.layers)
    if checkpointing:
        return len(saved) * tokens * hidden * element + max(ends, max(saved) + through)
    return sum(saved) + max(ends, through)


def forward_pass(sizes: Sizes, tokens: int, element: int, *, predicts: bool = True) -> int:
    """Activations of a forward pass. predicts: whether it ends in losses, and not in hidden states."""
    through = max(passing_through_layer(layer, sizes.hidden, tokens, element) for layer in sizes.layers)
    return max(through, logits(tokens, sizes.vocabulary, element)) if predicts else through


def grams(layer: LayerSizes) -> int:
    """The matrices of products of both output projections' inputs, fp32: of one layer, and of the one before it."""
    return 2 * FP32 * (layer.channels**2 + layer.query**2)


def solving(layer: LayerSizes, hidden: int, share: float) -> int:
    """What the larger least squares of a layer takes: its matrices, those of the columns that stay, the weights.

    share: of the columns that stay.
    """
    width = max(layer.channels, layer.query)
    kept = round(width * share)
    matrices = width * kept + 3 * kept**2
    weights = hidden * (width + 4 * kept)
    return grams(layer) // 2 + FP32 * (matrices + weights)
