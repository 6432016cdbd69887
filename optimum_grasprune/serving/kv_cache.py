"""What vLLM's KV cache holds of a sequence: layer by layer, in whole blocks, with sliding windows. Pure arithmetic.

Layers that all see everything, or all the same window, share one table of blocks, and each takes what its heads need.
Where both kinds are in a model, every kind has tables of its own over one pool of equal pages: a layer with fewer heads
has longer blocks in its page if they fit it evenly, else the rest of the page is lost. So does `get_kv_cache_groups` of
vLLM 0.32; with `--disable-hybrid-kv-cache-manager` all layers share one table again, and hold all tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

_GROUPED_BY_MOST = 1.5


@dataclass(frozen=True)
class CachedLayer:
    """What one GPU caches of a layer. heads: KV heads.  window: tokens that the layer sees at once; None for all."""

    heads: int
    window: int | None = None


@dataclass(frozen=True)
class Windows:
    """A KV cache in which not all layers keep all tokens.

    head_blocks: size of a block of the pool, in KV heads × tokens of one table's block.  blocks: that a sequence takes.
    """

    head_blocks: int
    blocks: int


def is_mixed(layers: Sequence[CachedLayer]) -> bool:
    """Whether layers differ in what they see."""
    return len({layer.window for layer in layers}) > 1


def held_heads(layers: Sequence[CachedLayer]) -> int:
    """KV heads that a token takes room for in all layers together, lost room included."""
    if not is_mixed(layers):
        return sum(layer.heads for layer in layers)
    widest = max(layer.heads for layer in layers)
    return sum(widest if widest % layer.heads else layer.heads for layer in layers)


def windows(layers: Sequence[CachedLayer], context: int, in_flight: int, block_tokens: int) -> Windows | None:
    """How vLLM reckons with a sequence of `context` tokens; None where every layer keeps all of it.

    in_flight: tokens that one step may add before older ones are given back.
    """
    if all(layer.window is None for layer in layers):
        return None
    if not is_mixed(layers):
        return Windows(held_heads(layers), _blocks(layers[0], context, in_flight, block_tokens))
    widest = max(layer.heads for layer in layers)
    alike = Counter(layers)
    least, most = min(alike.values()), max(alike.values())
    together = most if most < _GROUPED_BY_MOST * least else least
    blocks = 0
    for layer, count in alike.items():
        longer = 1 if widest % layer.heads else widest // layer.heads
        blocks += -(-count // together) * _blocks(layer, context, in_flight, block_tokens * longer)
    return Windows(together * widest, blocks)


def _blocks(layer: CachedLayer, context: int, in_flight: int, block_tokens: int) -> int:
    if layer.window is None:
        return -(-context // block_tokens)
    kept = min(layer.window - 1 + in_flight, context)
    return -(-kept // block_tokens) + 1  # a window need not begin where a block does
