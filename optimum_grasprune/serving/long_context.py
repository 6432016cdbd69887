"""The long-context workload: more long sequences at once than the dense KV cache holds. Pure functions.

The pruned model's cache of the same size holds them all.
Where the dense cache is full, its server lets requests wait, or preempts running ones and computes their cache anew.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import OptionError

BLOCK_TOKENS = 128
"""Tokens that lengths are rounded up to: the block of vLLM's CPU backend, a multiple of those of its GPU backends."""


def blocks(tokens: int) -> int:
    """Blocks that a sequence takes."""
    return -(-tokens // BLOCK_TOKENS)


def memory_for(sequences: int, tokens: int, kv_bytes_per_token: int) -> int:
    """Bytes of KV cache that hold so many sequences of so many tokens, and the one block that vLLM keeps for itself."""
    return (sequences * blocks(tokens) + 1) * BLOCK_TOKENS * kv_bytes_per_token


def sequences_in(memory: int, tokens: int, kv_bytes_per_token: int) -> int:
    """How many sequences of so many tokens a KV cache of so many bytes holds at once."""
    whole_blocks = memory // (BLOCK_TOKENS * kv_bytes_per_token)
    return max(0, whole_blocks - 1) // blocks(tokens)


def overflowing(
    dense: int, pruned: Sequence[int], tokens: int, sequences: int | None, memory: int | None, default: int = 16
) -> tuple[int, int]:
    """(sequences at once, bytes of KV cache) at which every pruned model's cache suffices and the dense one's does not.

    dense, pruned: KV bytes per token.  tokens: of a sequence.  sequences, memory: where they are given, they stay; of
    the two that are not, the memory follows from the sequences, which are `default`.
    Raises OptionError when there is no such workload.
    """
    largest = max(pruned)
    if memory is None:
        sequences = default if sequences is None else sequences
        memory = memory_for(sequences, tokens, largest)
    elif sequences is None:
        sequences = sequences_in(memory, tokens, largest)
    room, needed = sequences_in(memory, tokens, dense), memory_for(sequences, tokens, largest)
    where = f"sequences of {tokens} tokens in {memory / 2**20:.1f} MiB of KV cache"
    if room < 1:
        raise OptionError("mode", "long-context", f"the dense model holds no {where}; give more --kv-cache-memory")
    if needed > memory:
        raise OptionError("concurrency", sequences, f"more {where} than a pruned model holds; give fewer")
    if room >= sequences:
        raise OptionError("mode", "long-context", f"the dense model holds {room} {where}: {sequences} overflow nothing")
    return sequences, memory
