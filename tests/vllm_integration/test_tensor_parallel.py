from __future__ import annotations

import pytest
from transformers import LlamaConfig

pytest.importorskip("vllm")

from vllm_integration.layers import check_tensor_parallel


def layer(queries: int, heads: int, channels: int) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=96, num_attention_heads=queries, num_key_value_heads=heads, intermediate_size=channels, head_dim=8
    )


@pytest.mark.parametrize(
    ("queries", "heads", "channels", "size"), [(8, 4, 6, 2), (8, 1, 6, 2), (4, 2, 8, 4), (1, 1, 3, 1)]
)
def test_what_vllm_can_split_is_accepted(queries: int, heads: int, channels: int, size: int) -> None:
    check_tensor_parallel(0, layer(queries, heads, channels), size)


@pytest.mark.parametrize(
    ("queries", "heads", "channels", "size"), [(8, 4, 7, 2), (2, 1, 8, 4), (16, 4, 6, 3), (16, 8, 3, 3), (12, 3, 8, 4)]
)
def test_what_it_cannot_is_refused_with_the_way_out(queries: int, heads: int, channels: int, size: int) -> None:
    with pytest.raises(
        ValueError, match=f"layer 5 has {queries} query heads.*prune with --tensor-parallel-size {size}"
    ):
        check_tensor_parallel(5, layer(queries, heads, channels), size)
