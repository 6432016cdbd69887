"""Whose turn it is, and how the numbers of several models follow from those of all."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optimum_grasprune.execution import Following, following, turns


def test_turns_by_hand() -> None:
    assert list(islice(turns([1, 3]), 8)) == [1, 0, 1, 1, 1, 0, 1, 1]
    assert list(islice(turns([1, 1], length=2), 7)) == [0, 0, 1, 1, 0, 0, 1]
    assert list(islice(turns([0, 2]), 3)) == [1, 1, 1]
    # Cuts of 0, 0.2 and 0.4: two turns of three for the deepest one, and none where nothing is cut.
    assert list(islice(turns([0.0, 0.2, 0.4]), 6)) == [2, 1, 2, 2, 1, 2]
    assert list(islice(turns([0.0, 0.0]), 4)) == [0, 1, 0, 1]


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=10), st.integers(0, 300))
def test_everywhere_on_the_way_each_has_its_share(shares: list[float], steps: int) -> None:
    order = list(islice(turns(shares), steps))
    for done in range(steps + 1):
        counted = Counter(order[:done])
        for place, share in enumerate(shares):
            assert abs(counted[place] - done * share / sum(shares)) < len(shares)


def test_numbers_follow_the_cut() -> None:
    nothing, mild, deep = following([0.0, 0.1, 0.5], 0.5, 0.75)
    middle = (0.2**0.75 + 1) / 3
    assert (nothing.strength, deep.strength) == (0, 1) and mild.strength == pytest.approx(0.2**0.75)
    assert [each.beyond for each in (nothing, mild, deep)] == pytest.approx([-middle, 0.2**0.75 - middle, 1 - middle])
    assert following([0.0], 0.0, 0.75) == [Following(0, 0)]
    assert Following(0.5, -0.2).of(torch.tensor([1.0]), torch.tensor([10.0])) == pytest.approx([-0.5])
