from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimum_grasprune.families import family_of
from optimum_grasprune.families.shape import model_shape
from optimum_grasprune.serving.bounds import Shape, Windowed, decode_work, limit, limits, prefill_work
from tests.conftest import make_model
from tests.tiny_models import tiny_model

# 1,000 weights in the layers, a vocabulary of 10 times 10 elements, 2 heads of 4 elements and 1 KV head of 4.
DENSE = Shape(parameters=1200, embedding=100, head=100, tied=False, query_width=8, kv_width=8)
HALF = replace(DENSE, parameters=700, query_width=4, kv_width=4)


def test_read_parameters_leave_out_an_embedding_of_its_own() -> None:
    assert DENSE.read_parameters == 1100 and DENSE.layer_parameters == 1000
    tied = replace(DENSE, parameters=1100, tied=True)
    assert tied.read_parameters == 1100 and tied.layer_parameters == 1000


def test_decode_by_hand() -> None:
    work = decode_work(DENSE, batch=3, context=20, weight_bytes=2, kv_bytes=1)
    assert work.bytes == 1100 * 2 + 3 * 20 * 8
    assert work.flops == 3 * (2 * 1100 + 4 * 20 * 8)


def test_prefill_by_hand() -> None:
    work = prefill_work(DENSE, tokens=10, weight_bytes=2, kv_bytes=2)
    assert work.bytes == 1100 * 2 + 10 * 8 * 2
    assert work.flops == 2 * 10 * 1000 + 2 * 100 + 2 * 100 * 8


def test_windows_by_hand() -> None:
    half = replace(DENSE, windowed=(Windowed(window=8, query_width=4, kv_width=4),))
    work = decode_work(half, batch=3, context=20, weight_bytes=2, kv_bytes=1)
    assert work.bytes == 1100 * 2 + 3 * (20 * 4 + 8 * 4)
    assert work.flops == 3 * (2 * 1100 + 4 * (20 * 4 + 8 * 4))
    assert decode_work(half, 3, 8, 2, 1) == decode_work(DENSE, 3, 8, 2, 1)
    # Of 10 tokens, the last two see 0.5 and 1.5 fewer on average than without a window: 2 of 50 pairs.
    assert prefill_work(half, 10, 2, 2).flops == 2 * 10 * 1000 + 2 * 100 + 4 * (50 * 4 + 48 * 4)


def test_heads_that_see_everything_weigh_more_than_those_with_a_window() -> None:
    dense = replace(DENSE, windowed=(Windowed(8, 4, 4),))
    narrow = replace(dense, query_width=4, kv_width=4)  # what is left has a window
    bound = limits(dense, narrow, batch=1000, prompt=4096, output=2, weight_bytes=2, kv_bytes=2).decode
    assert bound > 400  # 4,097 tokens in the cache over 8, but for the weights; it would be 2 without windows


def test_positions_are_looked_up_row_by_row() -> None:
    assert replace(DENSE, parameters=1250, positions=50).read_parameters == DENSE.read_parameters


def test_limits_by_hand() -> None:
    found = limits(DENSE, HALF, batch=1, prompt=10, output=20, weight_bytes=2, kv_bytes=2)
    # Decode at 10 + 20 / 2 tokens: bytes 2,200 + 320 over 1,200 + 160; operations 2,200 + 640 over 1,200 + 320.
    assert found.decode == pytest.approx(max(2520 / 1360, 2840 / 1520))
    # Prefill: bytes 2,200 + 160 over 1,200 + 80; operations 20,000 + 200 + 1,600 over 10,000 + 200 + 800.
    assert found.prefill == pytest.approx(max(2360 / 1280, 21800 / 11000))
    assert found.request == max(found.prefill, found.decode)


def test_a_model_is_as_fast_as_itself() -> None:
    found = limits(DENSE, DENSE, batch=4, prompt=16, output=16, weight_bytes=2, kv_bytes=2)
    assert found.prefill == found.decode == found.request == 1


@given(batch=st.integers(1, 4096), context=st.integers(1, 200_000))
def test_decode_tends_to_the_ratio_of_the_caches(batch: int, context: int) -> None:
    works = [decode_work(shape, batch, context, 2, 2) for shape in (DENSE, HALF)]
    ratio = limit(*works).bytes
    weights, caches = 1100 / 600, 8 / 4
    assert weights - 1e-9 <= ratio <= caches + 1e-9


def test_shape_of_a_model() -> None:
    model = make_model()  # 3 layers; 4 query heads and 2 KV heads of 8 elements; 258 tokens of 32 elements
    shape = Shape.of(model_shape(model, family_of(model.config)))
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert (shape.embedding, shape.head, shape.tied) == (258 * 32, 258 * 32, False)
    assert (shape.query_width, shape.kv_width) == (3 * 4 * 8, 3 * 2 * 2 * 8)
    tied = make_model(tie_word_embeddings=True)
    assert Shape.of(model_shape(tied, family_of(tied.config))).tied


def test_windows_and_positions_of_a_model() -> None:
    gemma, opt = tiny_model("Gemma 3"), tiny_model("OPT")
    shape = Shape.of(model_shape(gemma, family_of(gemma.config)))
    assert shape.windowed == (Windowed(8, 4 * 16, 2 * 2 * 16),) * 2  # the first and the last of three layers
    assert Shape.of(model_shape(opt, family_of(opt.config))).positions == (128 + 2) * 32
