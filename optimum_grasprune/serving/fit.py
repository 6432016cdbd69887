"""What a model needs on each GPU, and how many sequences fit beside it. Pure arithmetic; no tensor is made.

The KV cache is counted as vLLM counts it: layer by layer, in whole blocks, with what sliding windows give back. A GPU
holds its share of the weights, and where there are fewer KV heads than GPUs, its own copy of a head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..families.shape import LayerShape, ModelShape
from ..units import KV
from .kv_cache import CachedLayer, Windows, held_heads, windows

GIB = 2**30

BLOCK_TOKENS = 16
"""Tokens in a block of the KV cache, as vLLM has it on a GPU."""

BATCHED_TOKENS = 8192
"""Tokens that one step of the engine may hold: `--max-num-batched-tokens` of `vllm serve` on GPUs of 70 GiB or more;
on smaller ones it is 2048."""

SCORED_SEQUENCES = 1024
"""Sequences whose next token one step may choose: `--max-num-seqs` on the same GPUs; on smaller ones it is 256."""

RUNTIME_BYTES = GIB
"""An allowance, not a measurement: CUDA context, libraries, communication buffers and CUDA graphs."""

_LOGIT_BYTES = 4
_ELEMENT_BYTES = {"float32": 4, "float": 4, "float16": 2, "half": 2, "bfloat16": 2}


def kv_heads_per_gpu(layer: LayerShape, size: int) -> int:
    """KV heads that each of `size` GPUs holds of a layer that they can split."""
    return -(-layer.kv_heads // size)


def kv_bytes_per_token(shape: ModelShape, element_bytes: int, size: int = 1) -> int:
    """Bytes that one token takes in the KV cache of each of `size` GPUs, while all layers keep it: keys and values."""
    return held_heads(cached_layers(shape, size)) * _head_bytes(shape, element_bytes)


def cached_layers(shape: ModelShape, size: int = 1) -> tuple[CachedLayer, ...]:
    """What each of `size` GPUs caches of every layer that caches anything."""
    return tuple(CachedLayer(kv_heads_per_gpu(layer, size), layer.window) for layer in shape.layers if layer.kv_heads)


def _head_bytes(shape: ModelShape, element_bytes: int) -> int:
    return KV.cached_vectors * shape.head_dim * element_bytes


def parameters_per_gpu(shape: ModelShape, size: int) -> int:
    """Parameters that each of `size` GPUs holds. The vocabulary is split with nothing added to make it even."""
    total = shape.replicated + -(-shape.vocabulary // size)
    for layer in shape.layers:
        total += layer.query_heads // size * shape.query_head
        total += layer.ffn_channels // size * shape.ffn_channel
        total += kv_heads_per_gpu(layer, size) * shape.kv_head
    return total


def activation_bytes(shape: ModelShape, element_bytes: int, size: int = 1) -> int:
    """An allowance for the largest step, per GPU: the widest FFN's three activations, four of the hidden state, logits.

    It is what vLLM measures at start-up by running such a step; there it decides, here it is estimated.
    """
    widest = max(layer.ffn_channels for layer in shape.layers) // size
    per_token = (3 * widest + 4 * shape.hidden_size) * element_bytes
    return BATCHED_TOKENS * per_token + SCORED_SEQUENCES * shape.vocab_size * _LOGIT_BYTES


def element_bytes(dtype: str) -> int:
    """Bytes of an element, by the name that torch, or a flag or log of vLLM, gives its type; fp8 of all kinds is 1."""
    return 1 if dtype.startswith(("fp8", "int8")) else _ELEMENT_BYTES.get(dtype, 2)


def cache_blocks(memory: int, token_bytes: int, block_tokens: int = BLOCK_TOKENS) -> int:
    """Whole blocks of the KV cache that fit in `memory` bytes; none when there is no memory left."""
    return max(0, memory) // (token_bytes * block_tokens)


@dataclass(frozen=True)
class Fit:
    """What a GPU holds, in bytes, and what remains for sequences.

    granted: memory that the engine may use.  weights: this GPU's share.  overhead: activations and runtime.
    kv_bytes_per_token: on this GPU.  block_tokens: tokens in a block of the cache.  context: tokens in a sequence.
    windows: how the cache is shared out where not all layers keep all tokens.  head_bytes: of a token in one KV head.
    """

    granted: int
    weights: int
    overhead: int
    kv_bytes_per_token: int
    block_tokens: int
    context: int
    windows: Windows | None = None
    head_bytes: int = 0

    @property
    def kv_memory(self) -> int:
        """Bytes left for the KV cache; negative when weights and overhead alone are too large."""
        return self.granted - self.weights - self.overhead

    @property
    def kv_tokens(self) -> int:
        """Tokens that the KV cache holds; with windows, those of as many sequences of `context` as it holds."""
        if self.windows is not None:
            return int(self._pool_blocks(self.windows) / self.windows.blocks * self.context)
        return self.block_tokens * cache_blocks(self.kv_memory, self.kv_bytes_per_token, self.block_tokens)

    @property
    def sequences(self) -> int:
        """Sequences of `context` tokens that fit at once, each in whole blocks."""
        if self.windows is not None:
            return self._pool_blocks(self.windows) // self.windows.blocks
        return self.kv_tokens // self.block_tokens // -(-self.context // self.block_tokens)

    def _pool_blocks(self, windows: Windows) -> int:
        return cache_blocks(self.kv_memory, windows.head_blocks * self.head_bytes, self.block_tokens)

    def to_dict(self) -> dict[str, int]:
        """The numbers as JSON types."""
        names = ("granted", "weights", "overhead", "kv_memory", "kv_bytes_per_token", "kv_tokens", "sequences")
        return {name: getattr(self, name) for name in names}


def fit(
    shape: ModelShape,
    *,
    gpu_memory: int,
    utilization: float,
    context: int,
    weight_bytes: int,
    kv_element_bytes: int,
    size: int = 1,
    overhead: int | None = None,
    block_tokens: int = BLOCK_TOKENS,
) -> Fit:
    """What each of `size` GPUs holds when a model is split among them.

    gpu_memory: bytes of one GPU.  utilization: share of it that the engine may use.  context: tokens in a sequence.
    weight_bytes, kv_element_bytes: bytes of a parameter and of an element of the KV cache.
    overhead: bytes for all that is neither weights nor KV cache; None for `activation_bytes` and `RUNTIME_BYTES`.
    """
    return Fit(
        granted=math.ceil(gpu_memory * utilization),
        weights=parameters_per_gpu(shape, size) * weight_bytes,
        overhead=activation_bytes(shape, weight_bytes, size) + RUNTIME_BYTES if overhead is None else overhead,
        kv_bytes_per_token=kv_bytes_per_token(shape, kv_element_bytes, size),
        block_tokens=block_tokens,
        context=context,
        windows=windows(cached_layers(shape, size), context, BATCHED_TOKENS, block_tokens),
        head_bytes=_head_bytes(shape, kv_element_bytes),
    )
