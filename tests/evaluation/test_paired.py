from __future__ import annotations

import math
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimum_grasprune.evaluation.paired import (
    FEWEST_DIFFERING,
    above_chance_kept,
    differences,
    paired_difference,
    recovery,
)

pytest.importorskip("scipy")

VALUES = st.lists(st.sampled_from([0.0, 1.0]), min_size=2, max_size=30)


def test_differences_are_by_document() -> None:
    assert differences([1, 0, 1, 1], [1, 1, 0, 0]) == [0, 1, -1, -1]
    with pytest.raises(ValueError):
        differences([1, 0], [1])


def test_one_task_by_hand() -> None:
    """Of ten documents six got worse and one better: mean −0.5, variance (7 − 10 · 0.25) / 9 = 0.5."""
    found = paired_difference([[-1] * 6 + [1] + [0] * 3])
    assert found is not None
    assert found.difference == -0.5 and (found.documents, found.differing) == (10, 7)
    assert found.standard_error == pytest.approx(math.sqrt(0.05))
    half = 2.262157 * math.sqrt(0.05)  # Student's 0.975 quantile at 9 degrees of freedom, from a table
    assert (found.low, found.high) == pytest.approx((-0.5 - half, -0.5 + half), abs=1e-6)
    assert not found.beyond_noise  # −1.006 to 0.006


def test_luck_that_both_share_is_no_noise() -> None:
    """Two intervals of their own would be 0.2 wide each: 0.5 ± 0.1 and 0.4 ± 0.1 of a hundred documents."""
    dense, pruned = [1.0] * 50 + [0.0] * 50, [1.0] * 40 + [0.0] * 60
    found = paired_difference([differences(dense, pruned)])
    assert found is not None and found.difference == pytest.approx(-0.1)
    assert found.beyond_noise and found.high == pytest.approx(-0.1 + 1.984217 * math.sqrt(0.09 * 100 / 99 / 100))


@pytest.mark.parametrize(("differing", "beyond"), [(FEWEST_DIFFERING - 1, False), (FEWEST_DIFFERING, True)])
def test_a_handful_of_documents_is_never_beyond_the_noise(differing: int, beyond: bool) -> None:
    found = paired_difference([[-1.0] * differing])
    assert found is not None and (found.low, found.high) == (-1, -1)
    assert found.beyond_noise is beyond


def test_several_tasks_by_hand() -> None:
    """Means −0.5 and 0, variances 1/3 and 2; weighted 1/2 each and by 4 : 2 documents."""
    strata = [[-1, 0, -1, 0], [1, -1]]
    equal = paired_difference(strata)
    assert equal is not None and equal.difference == -0.25
    assert equal.standard_error == pytest.approx(math.sqrt(0.25 * (1 / 12 + 1)))
    sized = paired_difference(strata, [4 / 6, 2 / 6])
    assert sized is not None and sized.difference == pytest.approx(-1 / 3)
    assert sized.standard_error == pytest.approx(math.sqrt(4 / 9 / 12 + 1 / 9))
    freedom = (1 / 12 + 1) ** 2 / ((1 / 12) ** 2 / 3 + 1)  # Welch and Satterthwaite
    from scipy.stats import t

    assert equal.high == pytest.approx(-0.25 + t.ppf(0.975, freedom) * equal.standard_error)


def test_without_spread_and_without_documents() -> None:
    same = paired_difference([[0.0] * 50])
    assert same is not None and (same.low, same.high, same.beyond_noise) == (0, 0, False)
    for strata in ([], [[1.0]], [[0.0, 1.0], []]):
        assert paired_difference(strata) is None


@given(dense=VALUES, seed=st.randoms(use_true_random=False))
def test_it_is_the_difference_of_the_means_and_turns_with_the_sides(dense: list[float], seed: object) -> None:
    pruned = dense[:]
    seed.shuffle(pruned)  # type: ignore[attr-defined]
    one = paired_difference([differences(dense, pruned)])
    other = paired_difference([differences(pruned, dense)])
    assert one is not None and other is not None
    assert one.difference == pytest.approx(fmean(pruned) - fmean(dense), abs=1e-12)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low))
    assert one.low <= one.difference <= one.high and one.beyond_noise == other.beyond_noise


def test_shares() -> None:
    assert recovery(0.42, 0.6) == pytest.approx(0.7) and recovery(0.4, 0.0) is None
    assert above_chance_kept(0.45, 0.65, 0.25) == pytest.approx(0.5)
    assert above_chance_kept(0.2, 0.65, 0.25) == pytest.approx(-0.125)
    assert above_chance_kept(0.2, 0.25, 0.25) is None and above_chance_kept(0.2, 0.5, None) is None
