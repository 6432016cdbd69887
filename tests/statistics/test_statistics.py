from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from optimum_grasprune.statistics import Moments


def streamed(x_TI: Tensor, cuts: list[int]) -> Moments:
    moments = Moments.empty(x_TI.shape[1])
    for chunk in x_TI.tensor_split(cuts):
        moments = moments.update(chunk)
    return moments


def test_by_hand() -> None:
    moments = Moments.empty(2).update(torch.tensor([[1.0, 0]])).update(torch.tensor([[3.0, 0], [5, 6]]))
    assert moments.count == 3
    assert moments.mean_I.tolist() == [3, 2]
    assert moments.spread_I.tolist() == [8, 24]
    assert moments.variance_I.tolist() == [4, 12]
    assert moments.norm_I.tolist() == pytest.approx([35**0.5, 6])


@given(
    st.integers(2, 40),
    st.integers(1, 5),
    st.lists(st.integers(0, 40), max_size=6),
    st.sampled_from([0.0, 1.0, 1e6]),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    st.integers(0, 99),
)
def test_any_split_gives_mean_and_variance(
    tokens: int, features: int, cuts: list[int], offset: float, dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = (torch.randn(tokens, features, generator=generator, dtype=torch.float64) + offset).to(dtype)
    moments = streamed(x, sorted(min(cut, tokens) for cut in cuts))
    exact = x.double()
    assert moments.count == tokens
    torch.testing.assert_close(moments.mean_I, exact.mean(0), rtol=1e-12, atol=1e-12)
    # A mean of a million costs six digits where sums of squares would cost twelve.
    torch.testing.assert_close(moments.variance_I, exact.var(0), rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(moments.norm_I, exact.norm(dim=0), rtol=1e-12, atol=1e-12)


def test_few_tokens() -> None:
    empty = Moments.empty(3)
    assert empty.count == 0
    assert empty.update(torch.empty(0, 3)) == empty
    one = empty.update(torch.tensor([[1.0, -2, 0]]))
    assert one.variance_I.tolist() == [0, 0, 0]
    assert one.norm_I.tolist() == [1, 2, 0]


def test_an_update_changes_nothing() -> None:
    first = Moments.empty(1).update(torch.tensor([[1.0], [2.0]]))
    first.update(torch.tensor([[100.0]]))
    assert (first.count, first.mean_I.tolist(), first.spread_I.tolist()) == (2, [1.5], [0.5])
