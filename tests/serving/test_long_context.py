from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimum_grasprune.errors import OptionError
from optimum_grasprune.serving.long_context import BLOCK_TOKENS, blocks, memory_for, overflowing, sequences_in


def test_by_hand() -> None:
    assert [blocks(tokens) for tokens in (1, 128, 129)] == [1, 1, 2]
    # 3 sequences of 2 blocks and one block besides, 128 tokens of 10 bytes each.
    assert memory_for(3, 200, 10) == 7 * 128 * 10
    assert sequences_in(7 * 128 * 10, 200, 10) == 3
    assert sequences_in(7 * 128 * 10 - 1, 200, 10) == 2
    assert sequences_in(5, 200, 10) == 0


@given(st.integers(1, 500), st.integers(1, 10_000), st.integers(1, 10_000))
def test_memory_holds_so_many_and_no_more(sequences: int, tokens: int, width: int) -> None:
    memory = memory_for(sequences, tokens, width)
    assert sequences_in(memory, tokens, width) == sequences
    assert sequences_in(memory - 1, tokens, width) == sequences - 1


def test_memory_follows_from_the_sequences() -> None:
    sequences, memory = overflowing(20, [10, 12], 256, sequences=8, memory=None)
    assert (sequences, memory) == (8, (8 * 2 + 1) * BLOCK_TOKENS * 12)
    assert sequences_in(memory, 256, 20) == 4  # 10.2 blocks of the dense model, one of them vLLM's own
    assert overflowing(20, [10], 256, sequences=None, memory=None)[0] == 16


def test_sequences_follow_from_the_memory() -> None:
    memory = memory_for(8, 256, 10) + 5
    assert overflowing(20, [10], 256, sequences=None, memory=memory) == (8, memory)


@pytest.mark.parametrize(
    ("pruned", "sequences", "memory", "reason"),
    [
        ([20], 8, None, "8 overflow nothing"),
        ([10], 9, memory_for(8, 256, 10), "more sequences of 256 tokens .* than a pruned model holds; give fewer"),
        ([10], 2, memory_for(2, 256, 20), "2 overflow nothing"),
        ([10], None, 100, "the dense model holds no sequences of 256 tokens"),
    ],
)
def test_what_does_not_overflow(pruned: list[int], sequences: int | None, memory: int | None, reason: str) -> None:
    with pytest.raises(OptionError, match=reason):
        overflowing(20, pruned, 256, sequences, memory)
