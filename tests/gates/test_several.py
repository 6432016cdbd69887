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
from optimum_grasprune.execution import WholeModel
from optimum_grasprune.gates import gate_learning_rate, gate_snapshots_at, train, train_gates
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


def test_depths_by_hand() -> None:
    inventory = UnitInventory((UnitGroup(0, FFN, 100, 1),))
    assert train.depths_of([Budget(90), Budget(80), Budget(50)], inventory) == pytest.approx([-1, -0.5, 1])
    assert train.depths_of([Budget(70)], inventory) == [0]
    scores, slopes = torch.tensor([1.0, 2.0]), torch.tensor([0.5, -1.0])
    assert torch.equal(train.scores_at(scores, slopes, -0.5), torch.tensor([0.75, 2.5]))
    assert torch.equal(train.Snapshot(scores, None, slopes).at(1).scores_U, torch.tensor([1.5, 1.0]))
    assert train.Snapshot(scores).at(1).scores_U is scores


def test_each_budget_has_scores_of_its_own(runner: WholeModel) -> None:
    budgets = budgets_of(runner, 0.9, 0.7, 0.5)
    of_budget = gate_snapshots_at(runner, budgets, TOKENS, CONFIG, zeros(runner))
    largest, middle, smallest = (of_budget(budget)[-1].scores_U for budget in budgets)
    _, depth, _ = train.depths_of(budgets, runner.inventory)
    assert torch.allclose(middle, largest.lerp(smallest, (1 + depth) / 2), atol=1e-6)
    assert (largest - smallest).abs().max() > 1e-2
    # Nesting takes units away and leaves the scores.
    within = budgets[2].within(UnitMask(runner.inventory, largest > 0))
    assert torch.equal(of_budget(within)[-1].scores_U, smallest)


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
    snapshots = gate_snapshots_at(runner, [whole, *budgets], TOKENS, CONFIG, zeros(runner))(budgets[-1])
    assert len(snapshots) == 2 and all(one.scores_U.shape == (runner.inventory.num_units,) for one in snapshots)
    # Six sequences and three of them again; cuts of 0.1, 0.3 and 0.5, of which nine steps are 1, 3 and 5.
    (training,) = trainings
    assert training[0] == 9
    assert training[1] == pytest.approx(gate_learning_rate(None, budgets[-1].share_cut(runner.inventory)) * 6 / 9)
    assert [taken[1:].count(budget.cost) for budget in (whole, *budgets)] == [0, 1, 3, 5]


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
    assert rates == [0.03]


def test_one_budget_is_trained_for_as_ever(runner: WholeModel) -> None:
    (budget,) = budgets_of(runner, 0.6)
    together = gate_snapshots_at(runner, [budget], TOKENS, CONFIG, zeros(runner))(budget)
    alone = train_gates(runner, budget, TOKENS, CONFIG, zeros(runner))
    assert all(torch.equal(one.scores_U, other) for one, other in zip(together, alone, strict=True))


def test_multipliers_are_trained_at_several_budgets_too(runner: WholeModel) -> None:
    config = CONFIG.model_copy(update={"multipliers": "joint"})
    budgets = budgets_of(runner, 0.9, 0.5)
    *_, last = gate_snapshots_at(runner, budgets, TOKENS, config, zeros(runner))(budgets[0])
    assert last.multipliers_U is not None and not torch.equal(last.multipliers_U, torch.ones_like(last.multipliers_U))
