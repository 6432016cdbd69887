from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from optimum_grasprune.execution import WholeModel
from optimum_grasprune.families import linears
from optimum_grasprune.recovery.energy import corrected
from optimum_grasprune.statistics import Moments
from optimum_grasprune.surgery.single_weights import build_sparse_model, keep_n_of_m, keep_per_row
from optimum_grasprune.units import ElementMask
from tests.conftest import logits_of, make_model

TOKENS = torch.arange(20)[None]


def scores_of(rows: int, width: int, seed: int, levels: int) -> Tensor:
    """Few levels, so that ties are common."""
    return torch.randint(levels, (rows, width), generator=torch.Generator().manual_seed(seed)).float()


def all_kept(weight: Tensor) -> Tensor:
    return torch.ones_like(weight, dtype=torch.bool)


def test_rows_by_hand() -> None:
    scores = torch.tensor([[1.0, 3, 2, 0], [5, 5, 5, 5]])
    assert keep_per_row(scores, 2).tolist() == [[False, True, True, False], [True, True, False, False]]
    assert not keep_per_row(scores, 0).any() and keep_per_row(scores, 4).all()


def test_blocks_by_hand() -> None:
    scores = torch.tensor([[9.0, 8, 7, 6, 0, 1, 2, 3]])
    assert keep_n_of_m(scores, 2, 4).int().tolist() == [[1, 1, 0, 0, 0, 0, 1, 1]]
    assert keep_n_of_m(scores, 4, 8).int().tolist() == [[1, 1, 1, 1, 0, 0, 0, 0]]
    with pytest.raises(ValueError, match="8 columns cannot be split into blocks of 3"):
        keep_n_of_m(scores, 1, 3)


@given(st.integers(1, 5), st.integers(1, 12), st.integers(0, 99), st.integers(1, 5), st.data())
def test_every_row_keeps_its_count_and_its_best(
    rows: int, width: int, seed: int, levels: int, data: st.DataObject
) -> None:
    count, scores = data.draw(st.integers(0, width)), scores_of(rows, width, seed, levels)
    kept = keep_per_row(scores, count)
    assert kept.sum(1).tolist() == [count] * rows
    for row, mask in zip(scores, kept, strict=True):
        if 0 < count < width:
            assert row[mask].min() >= row[~mask].max()
    assert torch.equal(kept, keep_per_row(scores.clone(), count))


@given(st.integers(1, 5), st.integers(1, 6), st.sampled_from([(2, 4), (4, 8)]), st.integers(0, 99), st.integers(1, 5))
def test_exactly_n_of_every_m_and_their_best(
    rows: int, blocks: int, pattern: tuple[int, int], seed: int, levels: int
) -> None:
    n, m = pattern
    scores = scores_of(rows, blocks * m, seed, levels)
    kept = keep_n_of_m(scores, n, m)
    assert (kept.view(rows, blocks, m).sum(2) == n).all()
    assert torch.equal(kept[:, :m], keep_per_row(scores[:, :m], n))
    assert torch.equal(kept[:, -m:], keep_per_row(scores[:, -m:], n))


def test_linears_are_all_maps_of_the_layers() -> None:
    model = make_model()
    maps = linears(model, WholeModel(model).blocks)
    assert set(maps) == {
        name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name != "lm_head"
    }
    assert all(model.get_submodule(path) is linear for path, linear in maps.items())


@pytest.mark.parametrize("tied", [False, True])
def test_sparse_model_is_one_of_its_own(tied: bool) -> None:
    model = make_model(attention_bias=True, tie_word_embeddings=tied)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    paths = linears(model, WholeModel(model).blocks)
    mask = ElementMask({path: torch.rand(linear.weight.shape) < 0.5 for path, linear in paths.items()})
    sparse = build_sparse_model(model, mask)

    assert type(sparse) is type(model) and not sparse.training
    for path, kept in mask.kept.items():
        weight = sparse.get_submodule(path).weight
        assert torch.equal(weight != 0, kept) and not torch.signbit(weight[~kept]).any()
        assert torch.equal(weight[kept], before[f"{path}.weight"][kept])
    assert (sparse.lm_head.weight is sparse.model.embed_tokens.weight) is tied
    assert sparse.model.embed_tokens.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()

    for path in mask.kept:
        for parameter in sparse.get_submodule(path).parameters():
            parameter.data.fill_(7.0)
    sparse.to(torch.bfloat16).requires_grad_(False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in model.parameters())


def test_nothing_cut_is_the_same_model() -> None:
    model = make_model(attention_bias=True, mlp_bias=True)
    maps = linears(model, WholeModel(model).blocks)
    sparse = build_sparse_model(model, ElementMask({path: all_kept(lin.weight) for path, lin in maps.items()}))
    assert torch.equal(logits_of(sparse, TOKENS), logits_of(model, TOKENS))


def test_correction_by_hand() -> None:
    # μ = (2, 0), σ² = (2, 8): E(W) = (1·2 + 1·0)² + 2 + 8 = 14 and, without the second column, (1·2)² + 2 = 6.
    moments = Moments.empty(2).update(torch.tensor([[1.0, -2.0], [3.0, 2.0]]))
    assert moments.mean_I.tolist() == [2, 0] and moments.variance_I.tolist() == [2, 8]
    before, after = torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, 0.0]])
    weight, shift = corrected(before, after, moments, has_bias=False)
    assert shift is None
    assert weight.tolist() == [[pytest.approx((14 / 6) ** 0.5), 0.0]]
    # With a bias: variances 10 and 2, a factor of √5 clipped at 2, and the mean 2 − 2·2 goes into the bias.
    weight, shift = corrected(before, after, moments, has_bias=True)
    assert weight.tolist() == [[2.0, 0.0]]
    assert shift is not None and shift.tolist() == [-2.0]


@given(st.integers(0, 99), st.booleans())
def test_correction_restores_what_it_says(seed: int, has_bias: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(30, 6, generator=generator) * torch.rand(6, generator=generator) + torch.randn(
        6, generator=generator
    )
    before = torch.randn(5, 6, generator=generator)
    after = before * (torch.rand(5, 6, generator=generator) < 0.7)
    moments = Moments.empty(6).update(x)
    weight, shift = corrected(before, after, moments, has_bias=has_bias)
    assert torch.isfinite(weight).all()
    assert torch.equal(weight != 0, after != 0)
    if shift is not None:
        mean = x.double().mean(0)
        torch.testing.assert_close(weight.double() @ mean + shift, before.double() @ mean, atol=1e-5, rtol=1e-5)
