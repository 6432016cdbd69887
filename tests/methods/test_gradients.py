from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from optimum_grasprune import GRASPConfig, project
from optimum_grasprune.execution import WholeModel
from optimum_grasprune.methods import Problem
from optimum_grasprune.methods.gradients import _below, annealed_sensitivity, sensitivity_per_parameter
from optimum_grasprune.methods.grasprune import standardised_log
from optimum_grasprune.statistics import PER_TOKEN
from optimum_grasprune.units import Budget
from tests.conftest import make_model

TOKENS = torch.arange(120).view(4, 30)
SCORES = st.one_of(
    st.sampled_from([0.0, 1e-45, 3e-39, 1e-10, 1e-3, 1.0, 2.0**127]),
    st.floats(min_value=0, max_value=2.0**127, width=32),
)


def check_order(before_U: Tensor, after_U: Tensor, kept_U: Tensor) -> None:
    """Out below kept, strictly; and of either, none that scored lower ends above one that scored higher."""
    assert torch.isfinite(after_U).all()
    assert after_U[~kept_U].max() < after_U[kept_U].min()
    for part in (kept_U, ~kept_U):
        in_order = after_U[part][before_U[part].argsort(stable=True)]
        assert (in_order.diff() >= 0).all()


@given(st.lists(st.tuples(SCORES, st.booleans()), min_size=2, max_size=12))
def test_what_is_out_ends_below_whatever_the_scores(units: list[tuple[float, bool]]) -> None:
    score_U = torch.tensor([score for score, _ in units], dtype=torch.float32)
    kept_U = torch.tensor([kept for _, kept in units])
    kept_U[0], kept_U[1] = True, False
    below_U = _below(score_U, kept_U)
    assert below_U.dtype == torch.float32
    check_order(score_U, below_U, kept_U)
    # The gates start from logarithms, which tell no neighbours apart.
    start_U = standardised_log(below_U)
    apart = below_U[~kept_U].max() < 0.999 * below_U[kept_U].min()
    assert start_U[~kept_U].max() < start_U[kept_U].min() or not apart


def test_what_was_right_stays_to_the_bit() -> None:
    score_U, kept_U = torch.tensor([3.0, 5.0, 2.0, 8.0]), torch.tensor([True, False, True, False])
    assert _below(score_U, kept_U).tolist() == [3.0, 5.0 * 0.125, 2.0, 8.0 * 0.125]
    assert _below(score_U, torch.tensor([False, True, False, True])) is score_U
    assert _below(torch.zeros(4), torch.ones(4, dtype=torch.bool)).tolist() == [0, 0, 0, 0]


def test_by_hand_with_dead_units() -> None:
    # Dead ones count as half of 0.25. The one that is out and scores 1 then goes below the lowest that stays, 0.125.
    score_U, kept_U = torch.tensor([0.0, 0.25, 1.0, 0.0]), torch.tensor([True, True, False, False])
    assert _below(score_U, kept_U).tolist() == [0.125 / 0.25, 1.0, 0.0625 / 0.25, 0.0625 / 8 / 0.25]


@pytest.mark.parametrize("dead", [3, 40, 48])
def test_rounds_with_dead_channels(dead: int) -> None:
    model = make_model()
    for layer in model.model.layers:
        layer.mlp.up_proj.weight.data[:dead] = 0
    runner = WholeModel(model)
    inventory = runner.inventory
    config = GRASPConfig(keep_ratio=0.5)
    budget = Budget.resolve(config, inventory, 0)
    problem = Problem(runner, budget, TOKENS, TOKENS[:0], config, (PER_TOKEN,))
    first_U = sensitivity_per_parameter(problem, PER_TOKEN)
    assert (first_U == 0).sum() == 3 * dead
    scores_U = annealed_sensitivity(problem, PER_TOKEN, first_U, rounds=4)
    kept_U = project(scores_U, inventory, budget).kept_U
    assert torch.isfinite(scores_U).all() and scores_U[~kept_U].max() < scores_U[kept_U].min()
    least = 1 if dead == 48 else 0  # every layer keeps a channel
    assert kept_U[first_U == 0].sum() <= max(3 * least, int(kept_U.sum() - (first_U > 0).sum()))
