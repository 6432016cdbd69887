"""Gates that are trained for several budgets at once."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlamaForCausalLM

from optimum_grasprune import Budget, GRASPConfig, UnitGroup, UnitInventory, UnitMask
from optimum_grasprune.config import BudgetOptions
from optimum_grasprune.execution import WholeModel
from optimum_grasprune.gates import gate_learning_rate, gate_snapshots, gate_snapshots_at, train, train_gates
from optimum_grasprune.units import FFN, kept_units

TOKENS = torch.arange(6 * 12).view(6, 12) % 258
CONFIG = GRASPConfig(budget_warmup=0.0, snapshots=2, seed=3)


@pytest.fixture
def runner(model: LlamaForCausalLM) -> WholeModel:
    return WholeModel(model)


def budgets_of(runner: WholeModel, *ratios: float) -> list[Budget]:
    return [Budget(int(ratio * runner.inventory.total_cost)) for ratio in ratios]


def zeros(runner: WholeModel) -> Tensor:
    return torch.zeros(runner.inventory.num_units)


def test_turns_by_hand() -> None:
    inventory = UnitInventory((UnitGroup(0, FFN, 100, 1),))
    whole, large, small = Budget(100), Budget(80), Budget(60)
    # Cuts of 0, 0.2 and 0.4: two turns of three for the smallest one, and none where nothing is cut.
    turns = islice(train.in_turn([whole, large, small], inventory), 6)
    assert [budget.cost for budget in turns] == [60, 80, 60, 60, 80, 60]
    assert [budget.cost for budget in islice(train.in_turn([whole], inventory), 2)] == [100, 100]


@given(costs=st.lists(st.integers(1, 99), min_size=2, max_size=10, unique=True), steps=st.integers(1, 300))
def test_every_budget_has_the_turns_that_its_cut_asks_for(costs: list[int], steps: int) -> None:
    inventory = UnitInventory((UnitGroup(0, FFN, 100, 1),))
    taken = [budget.cost for budget in islice(train.in_turn([Budget(cost) for cost in costs], inventory), steps)]
    whole = sum(100 - cost for cost in costs)
    for cost in costs:
        assert abs(taken.count(cost) - steps * (100 - cost) / whole) < len(costs)


def test_each_budget_has_scores_of_its_own(runner: WholeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    budgets = budgets_of(runner, 0.9, 0.7, 0.6, 0.5)
    began: list[list[Tensor]] = []
    ended: list[list[Tensor]] = []
    learn = WholeModel.learn

    def watched(self: WholeModel, trained: Any, *args: Any, **named: Any) -> Any:
        began.append(trained.start())
        ended.append(learn(self, trained, *args, **named))
        return ended[-1]

    monkeypatch.setattr(WholeModel, "learn", watched)
    start_U = torch.linspace(-1, 1, runner.inventory.num_units)
    of_budget = gate_snapshots_at(runner, budgets, TOKENS, CONFIG, start_U)
    *larger, smallest = (of_budget(budget)[-1].scores_U for budget in budgets)
    # From what the smallest has come to.
    assert torch.equal(began[1][0], smallest - start_U) and not began[1][1].any()
    # By hand: s = (cut ÷ 0.5)^¼, and what travels is s · (a + (s − s̄) · b).
    strengths = [((1 - budget.cost / runner.inventory.total_cost) / 0.5) ** 0.25 for budget in budgets[:-1]]
    level_U, bend_U = ended[1]
    for scores_U, strength in zip(larger, strengths, strict=True):
        travelled_U = strength * (level_U + (strength - sum(strengths) / 3) * bend_U)
        assert torch.allclose(scores_U, start_U + travelled_U, atol=1e-4)
    assert bend_U.abs().max() > 1e-3 and (larger[0] - smallest).abs().max() > 1e-2
    # Nesting takes units away and leaves the scores.
    for place, scores_U in ((1, larger[1]), (3, smallest)):
        within = budgets[place].within(UnitMask(runner.inventory, larger[0] > 0))
        assert torch.equal(of_budget(within)[-1].scores_U, scores_U)


def test_the_smallest_budget_is_trained_for_as_by_itself(runner: WholeModel) -> None:
    budgets = budgets_of(runner, 0.9, 0.7, 0.5)
    for multipliers in ("none", "joint"):
        config = CONFIG.model_copy(update={"multipliers": multipliers})
        together = gate_snapshots_at(runner, budgets, TOKENS, config, zeros(runner))(budgets[-1])
        alone = gate_snapshots(runner, budgets[-1], TOKENS, config, zeros(runner))
        assert len(together) == len(alone) == 2
        for one, other in zip(together, alone, strict=True):
            assert torch.equal(one.scores_U, other.scores_U)
            assert (one.multipliers_U is None) == (multipliers == "none")
            assert one.multipliers_U is None or torch.equal(one.multipliers_U, other.multipliers_U)  # type: ignore[arg-type]


def test_steps_are_spread_over_the_budgets(runner: WholeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    trainings: list[tuple[int, float]] = []
    learn = WholeModel.learn

    def watched(scores_U: Tensor, inventory: UnitInventory, budget: Budget) -> Any:
        taken.append(budget.cost)
        return kept_units(scores_U, inventory, budget)

    def watched_learn(
        self: WholeModel, trained: Any, tokens_NS: Tensor, training: Any, *args: Any, **named: Any
    ) -> Any:
        trainings.append((len(tokens_NS), training.learning_rate))
        return learn(self, trained, tokens_NS, training, *args, **named)

    monkeypatch.setattr(train, "kept_units", watched)
    monkeypatch.setattr(train, "project", lambda *given: UnitMask(runner.inventory, watched(*given)))
    monkeypatch.setattr(WholeModel, "learn", watched_learn)
    whole, *budgets = budgets_of(runner, 1.0, 0.9, 0.7, 0.5)
    sequences_NS = torch.cat([TOKENS, TOKENS[:2]])
    snapshots = gate_snapshots_at(runner, [whole, *budgets], sequences_NS, CONFIG, zeros(runner))(budgets[-1])
    assert len(snapshots) == 2 and all(one.scores_U.shape == (runner.inventory.num_units,) for one in snapshots)
    # Eight sequences for the smallest, then four of them for cuts of 0.1 and 0.3.
    rate = gate_learning_rate(None, budgets[-1].share_cut(runner.inventory))
    assert trainings == [(8, rate), (4, rate)]
    assert [taken.count(budget.cost) for budget in (whole, *budgets)] == [0, 1, 4, 9]
    assert taken[0] == budgets[-1].cost and taken[9] == budgets[1].cost  # where the first mask of each training is


def test_budgets_beside_the_smallest_do_not_shrink_again(runner: WholeModel) -> None:
    budgets = [Budget.resolve(BudgetOptions(keep_ratio=ratio), runner.inventory, 0) for ratio in (0.8, 0.7, 0.5)]
    config = CONFIG.model_copy(update={"budget_warmup": 0.5})
    gate_snapshots_at(runner, budgets, TOKENS, config, zeros(runner))
    own, others = runner.trainings
    shrinking, at_once = own.curves(0.5), others.curves(0.7)
    assert shrinking is not None and at_once is not None
    first, *_, last = shrinking.readings["kept.ffn"]
    assert first == 1 and last is not None and last < 0.7
    assert all(kept is not None and kept < 0.8 for kept in at_once.readings["kept.ffn"])


def test_a_learning_rate_that_is_asked_for_is_taken(runner: WholeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    learn = WholeModel.learn

    def watched_learn(
        self: WholeModel, trained: Any, tokens_NS: Tensor, training: Any, *args: Any, **named: Any
    ) -> Any:
        rates.append(training.learning_rate)
        return learn(self, trained, tokens_NS, training, *args, **named)

    monkeypatch.setattr(WholeModel, "learn", watched_learn)
    config = CONFIG.model_copy(update={"learning_rate": 0.03})
    gate_snapshots_at(runner, budgets_of(runner, 0.9, 0.5), TOKENS[:2], config, zeros(runner))
    assert rates == [0.03, 0.03]


def test_one_budget_is_trained_for_as_ever(runner: WholeModel) -> None:
    (budget,) = budgets_of(runner, 0.6)
    together = gate_snapshots_at(runner, [budget], TOKENS, CONFIG, zeros(runner))(budget)
    alone = train_gates(runner, budget, TOKENS, CONFIG, zeros(runner))
    assert all(torch.equal(one.scores_U, other) for one, other in zip(together, alone, strict=True))


def test_multipliers_are_trained_at_several_budgets_too(runner: WholeModel) -> None:
    config = CONFIG.model_copy(update={"multipliers": "joint"})
    budgets = budgets_of(runner, 0.9, 0.5)
    of_budget = gate_snapshots_at(runner, budgets, TOKENS, config, zeros(runner))
    larger, smaller = (of_budget(budget)[-1].multipliers_U for budget in budgets)
    assert larger is not None and smaller is not None and not torch.equal(smaller, torch.ones_like(smaller))
    assert not torch.equal(larger, smaller) and torch.allclose(larger, smaller, atol=0.1)  # goes on from there
