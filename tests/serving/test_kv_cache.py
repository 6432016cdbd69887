"""The KV cache with sliding windows. Figures of vLLM were read off the engine, 0.32 on a CPU: 1 GiB, blocks of 128."""

from __future__ import annotations

import pytest

from optimum_grasprune.serving.fit import GIB, Fit
from optimum_grasprune.serving.kv_cache import CachedLayer, Windows, held_heads, windows

HEAD_BYTES = 2 * 32 * 4
"""A key and a value of 32 elements in fp32."""


def layers(*heads_and_windows: tuple[int, int | None]) -> list[CachedLayer]:
    return [CachedLayer(*each) for each in heads_and_windows]


MIXED = layers((4, 16), (1, None), (3, 16), (2, 16))


def kv_tokens(shared: Windows | None, context: int) -> int:
    return Fit(GIB, 0, 0, 10 * HEAD_BYTES, 128, context, shared, HEAD_BYTES).kv_tokens


def test_layers_that_see_everything_need_no_reckoning() -> None:
    assert windows(layers((4, None), (1, None)), 128, 8192, 128) is None
    assert kv_tokens(None, 128) == 419_328  # as vLLM says, for 4 + 1 + 3 + 2 heads


def test_one_window_in_all_layers() -> None:
    shared = windows(layers((4, 16), (1, 16), (3, 16), (2, 16)), 128, 8192, 128)
    assert shared == Windows(head_blocks=10, blocks=2)  # a window may lie across two blocks
    assert kv_tokens(shared, 128) == 209_664  # as vLLM says


def test_windows_in_some_layers() -> None:
    """Pages are as large as four heads: one head has blocks of 512 in them, two of 256, three lose a quarter."""
    shared = windows(MIXED, 128, 8192, 128)
    assert shared == Windows(head_blocks=4, blocks=2 + 1 + 2 + 2)
    assert kv_tokens(shared, 128) == 149_796  # as vLLM says
    assert held_heads(MIXED) == 4 + 1 + 4 + 2


def test_a_long_sequence_gives_back_what_no_window_sees() -> None:
    """Of 10,240 tokens a layer with a window keeps 15 + 1,024: 9 blocks, and one more."""
    shared = windows(layers((1, 16), (1, None)), 10_240, 1024, 128)
    assert shared is not None and shared.blocks == (9 + 1) + 80


@pytest.mark.parametrize(
    ("sliding", "full", "together", "tables"),
    [(15, 3, 3, 5 + 1), (29, 5, 5, 6 + 1), (12, 13, 13, 1 + 1), (4, 4, 4, 1 + 1)],
)
def test_layers_that_are_alike_share_tables(sliding: int, full: int, together: int, tables: int) -> None:
    """Gemma 3 of 270M and 4B, and two with about as many of each kind."""
    alike = layers(*[(1, 16)] * sliding, *[(1, None)] * full)
    shared = windows(alike, 128, 8192, 128)
    assert shared == Windows(together, (tables - 1) * 2 + 1)
