"""Closed forms against numbers worked out by hand and against what they promise."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from optimum_grasprune.errors import GraspruneError
from optimum_grasprune.recovery.bias import missing_mean
from optimum_grasprune.recovery.energy import energy_factors, row_energy
from optimum_grasprune.recovery.least_squares import restored_weight, usual_tokens


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def restored(weight: Tensor, kept: Tensor, x_TI: Tensor, damping: float, z_TK: Tensor | None = None) -> Tensor:
    z_TK = x_TI[:, kept] if z_TK is None else z_TK
    return restored_weight(weight, kept, z_TK.T @ z_TK, x_TI.T @ z_TK, damping)


def test_tokens_with_an_outlying_norm() -> None:
    x = torch.tensor([[3.0, 4], [0, 0], [6, 8], [0, 25.01], [0, 25], [5, 0], [0, -5]])
    # Norms 5, 0, 10, 25.01, 25, 5, 5 with median 5; at the limit itself a token still counts.
    assert usual_tokens(x).tolist() == [True, True, True, False, True, True, True]
    assert usual_tokens(x, limit=1.0).tolist() == [True, True, False, False, False, True, True]
    assert usual_tokens(x.bfloat16() * 0).all()


def test_least_squares_by_hand() -> None:
    # One output 1·x₁ + 1·x₂ with x₂ = 2·x₁ always: the first column alone must become 3.
    x = torch.tensor([[1.0, 2], [2, 4]])
    weight, kept = torch.tensor([[1.0, 1]]), torch.tensor([0])
    assert restored(weight, kept, x, 1e-9).tolist() == [[pytest.approx(3)]]
    # A ridge of the median diagonal, 5, halves the step: 1 + (10 / (5 + 5)).
    assert restored(weight, kept, x, 1.0).tolist() == [[pytest.approx(2)]]
    assert restored(weight, kept, x, 4.0).tolist() == [[pytest.approx(1.4)]]


def test_a_median_that_dead_channels_do_not_move() -> None:
    # As above, with two more channels that are always zero: the median of what is left is still 5.
    x = torch.tensor([[1.0, 2, 0, 0], [2, 4, 0, 0]])
    weight, kept = torch.ones(1, 4), torch.tensor([0, 2, 3])
    assert restored(weight, kept, x, 1.0).tolist() == [pytest.approx([2, 1, 1])]


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_the_scale_of_the_inputs_changes_no_weight(scale: float) -> None:
    x, weight, kept = random(20, 5, seed=0), random(3, 5, seed=1), torch.tensor([0, 3])
    torch.testing.assert_close(restored(weight, kept, scale * x, 0.5), restored(weight, kept, x, 0.5))


@given(st.integers(0, 99))
def test_recovers_the_dense_output_where_that_is_possible(seed: int) -> None:
    """Inputs that span three directions, seen through four kept columns."""
    x = random(40, 3, seed=seed) @ random(3, 7, seed=seed + 1000)
    weight, kept = random(5, 7, seed=seed + 2000), torch.tensor([0, 2, 3, 6])
    close = restored(weight, kept, x, 1e-9)
    assert close.dtype == torch.float64
    error = (x[:, kept] @ close.double().T - x @ weight.T).norm() / (x @ weight.T).norm()
    assert error < 1e-5


def test_other_inputs_than_the_dense_ones() -> None:
    """The pruned model's inputs are twice the dense ones: the weight halves."""
    x, weight, kept = random(20, 4, seed=0), random(3, 4, seed=1), torch.arange(4)
    torch.testing.assert_close(restored(weight, kept, x, 1e-9, z_TK=2 * x).double(), weight / 2, atol=1e-6, rtol=1e-6)


@given(st.integers(0, 99), st.integers(2, 8), st.floats(1e-6, 1e3), st.data())
def test_error_is_never_above_the_unrestored_one(seed: int, features: int, damping: float, data: st.DataObject) -> None:
    kept = torch.tensor(sorted(data.draw(st.sets(st.integers(0, features - 1), min_size=1))))
    tokens = data.draw(st.integers(1, 12))  # fewer than features: a singular Gram matrix
    x, weight = random(tokens, features, seed=seed), random(4, features, seed=seed + 1000)
    wanted = x @ weight.T
    before = (x[:, kept] @ weight[:, kept].T - wanted).square().sum()
    after = (x[:, kept] @ restored(weight, kept, x, damping).double().T - wanted).square().sum()
    assert after <= before * (1 + 1e-5) + 1e-9


def test_nothing_cut_changes_nothing() -> None:
    x, weight = random(9, 4, seed=0), random(3, 4, seed=1)
    torch.testing.assert_close(restored(weight, torch.arange(4), x, 0.1), weight)


@pytest.mark.parametrize("damping", [1e-12, 1.0])
def test_singular_matrix_and_dead_channels(damping: float) -> None:
    x = random(30, 5, seed=0)
    x[:, 1] = 0  # dead
    x[:, 3] = x[:, 2]  # twins
    weight, kept = random(4, 5, seed=1), torch.tensor([1, 2, 3])
    new = restored(weight, kept, x, damping)
    assert torch.isfinite(new).all()
    torch.testing.assert_close(new[:, 0], weight[:, 1])
    assert not torch.allclose(new[:, 1], weight[:, 2])


def test_singular_matrix_in_fp32() -> None:
    """Twenty channels that span five directions: fp32 alone cannot factorise their matrix."""
    x = random(60, 5, seed=0) @ random(5, 20, seed=1)
    weight, kept = random(4, 20, seed=2), torch.arange(16)
    old, wanted = weight[:, kept], x @ weight.T
    for damping in (1e-12, 1e-9, 1e-6, 1e-3, 1.0):
        new = restored(weight.float(), kept, x.float(), damping)
        assert new.dtype == torch.float32 and torch.isfinite(new).all()
        error = (x[:, kept] @ new.double().T - wanted).square().sum()
        assert error <= (x[:, kept] @ old.T - wanted).square().sum(), damping


def test_all_channels_dead() -> None:
    weight, kept = random(4, 5, seed=1), torch.tensor([0, 4])
    assert torch.equal(restored(weight, kept, torch.zeros(6, 5).double(), 1.0), weight[:, kept])


def test_missing_mean_by_hand() -> None:
    weight, mean = torch.tensor([[1.0, 2, 3], [4, 5, 6]]), torch.tensor([10.0, 1, -1])
    assert missing_mean(weight, mean, torch.tensor([0])).tolist() == [2 - 3, 5 - 6]
    assert missing_mean(weight, mean, torch.tensor([1, 2])).tolist() == [10, 40]
    assert missing_mean(weight, mean, torch.arange(3)).tolist() == [0, 0]
    assert missing_mean(weight.bfloat16(), mean, torch.arange(0)).tolist() == [9, 39]


def test_row_energy_by_hand() -> None:
    weight = torch.tensor([[1.0, 2], [0, 3], [1, -1], [0, 0]])
    mean, variance = torch.tensor([1.0, 1]), torch.tensor([4.0, 0.5])
    # (1 + 2)² + 4 + 4·0.5, 3² + 9·0.5, 0² + 4 + 0.5, 0.
    assert row_energy(weight, mean, variance).tolist() == [15, 13.5, 4.5, 0]
    assert row_energy(weight.bfloat16(), mean, variance).dtype == torch.float64


def test_row_energy_is_the_mean_square_of_uncorrelated_inputs() -> None:
    signs = torch.tensor([[a, b, c] for a in (-1.0, 1) for b in (-1, 1) for c in (-1, 1)], dtype=torch.float64)
    x = signs * torch.tensor([1.0, 2, 3]) + torch.tensor([0.5, -1, 2])
    weight = random(4, 3, seed=0)
    energy = row_energy(weight, x.mean(0), x.var(0, correction=0))
    torch.testing.assert_close(energy, (x @ weight.T).square().mean(0))


def test_energy_factors_by_hand() -> None:
    before = torch.tensor([4.0, 1, 100, 1, 5, 0, 0])
    after = torch.tensor([1.0, 4, 1, 100, 0, 0, 3])
    assert energy_factors(before, after).tolist() == [2, 0.5, 2, 0.5, 1, 1, 0.5]
    assert energy_factors(before, after, largest=math.sqrt(2)).tolist() == pytest.approx(
        [2**0.5, 0.5**0.5, 2**0.5, 0.5**0.5, 1, 1, 0.5**0.5]
    )
    assert energy_factors(torch.tensor([2.0]), torch.tensor([1.0])).tolist() == pytest.approx([2**0.5])
    assert energy_factors(torch.tensor([3e-9]), torch.tensor([1e-9])).tolist() == pytest.approx([3**0.5])
    assert torch.isfinite(energy_factors(torch.tensor([1e300]).double(), torch.tensor([1e-300]).double())).all()


def test_damping_is_measured_in_the_diagonal_that_is_named() -> None:
    # Two kept channels of three, all independent: the ridge alone decides how far the old weights are kept to.
    gram, weight = torch.diag(torch.tensor([1.0, 2, 9])), torch.tensor([[1.0, 1, 1]])
    cross = torch.tensor([[1.0, 0, 0], [0, 2, 0], [0, 0, 9]]) + 0.5
    kept = torch.arange(3)
    for diagonal, unit in (("median", 2.0), ("mean", 4.0)):
        ridge = 0.5 * unit
        expected = weight + (weight @ cross - weight @ gram) @ torch.linalg.inv(gram + ridge * torch.eye(3))
        found = restored_weight(weight, kept, gram, cross, 0.5, diagonal=diagonal)  # type: ignore[arg-type]
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("where", ["one element", "all elements", "the cross products", "the weight"])
def test_numbers_that_are_not_finite_are_an_error_that_names_the_layer(
    where: str, value: float, dtype: torch.dtype
) -> None:
    x, weight, kept = random(20, 4, seed=0).to(dtype), random(3, 4, seed=1).to(dtype), torch.arange(3)
    gram, cross = x[:, kept].T @ x[:, kept], x.T @ x[:, kept]
    if where == "one element":
        gram[1, 1] = value
    elif where == "all elements":
        gram.fill_(value)
    elif where == "the cross products":
        cross[0, 0] = value
    else:
        weight[2, 3] = value
    with pytest.raises(GraspruneError, match="^the least squares of layers.7.mlp cannot be solved: .* not finite$"):
        restored_weight(weight, kept, gram, cross, 0.5, "layers.7.mlp")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_ridge_grows_until_the_matrix_can_be_factored_or_for_eighty_decades(dtype: torch.dtype) -> None:
    weight, kept = torch.zeros(3, 2, dtype=dtype), torch.arange(2)
    indefinite = torch.tensor([[1e-30, 1e38], [1e38, 1e-30]], dtype=dtype)  # products of real inputs never are
    assert torch.isfinite(restored_weight(weight, kept, indefinite, indefinite, 0.5)).all()
    hopeless = torch.tensor([[1e-300, 1e300], [1e300, 1e-300]], dtype=torch.float64)
    with pytest.raises(GraspruneError, match="the least squares of down_proj cannot be solved, not even with a ridge"):
        restored_weight(weight.double(), kept, hopeless, hopeless, 0.5, "down_proj")


def test_a_gram_matrix_that_fp32_cannot_factor() -> None:
    """Two inputs that are equal but for rounding, and a ridge too small to tell them apart."""
    x = random(50, 2, seed=0)
    x = torch.cat([x, x + 1e-9 * random(50, 2, seed=1)], dim=1).float()
    weight, kept = random(3, 4, seed=2).float(), torch.arange(4)
    solved = restored_weight(weight, kept, x.T @ x, x.T @ x, 1e-12)
    torch.testing.assert_close(x @ solved.T, x @ weight.T, rtol=1e-3, atol=1e-3)
