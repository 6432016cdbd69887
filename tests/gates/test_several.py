"""Gates that are trained for several budgets at once."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from optimum_grasprune import Budget, GRASPConfig, UnitInventory, project
from optimum_grasprune.execution import WholeModel
from optimum_grasprune.gates import gate_learning_rate, train, train_gates, train_gates_at

TOKENS = torch.arange(6 * 12).view(6, 12) % 258
CONFIG = GRASPConfig(budget_warmup=0.0, snapshots=2, seed=3)


@pytest.fixture
def runner(model: LlamaForCausalLM) -> WholeModel:
    return WholeModel(model)


def budgets_of(runner: WholeModel, *ratios: float) -> list[Budget]:
    return [Budget(int(ratio * runner.inventory.total_cost)) for ratio in ratios]


def zeros(runner: WholeModel) -> Tensor:
    return torch.zeros(runner.inventory.num_units)


def test_every_round_has_each_budget_once_in_an_order_of_its_own() -> None:
    budgets = [Budget(cost) for cost in (9, 8, 7, 6)]
    turns = [budget.cost for budget in islice(train.in_turn(budgets, seed=1), 40)]
    rounds = [turns[start : start + 4] for start in range(0, 40, 4)]
    assert all(sorted(each) == [6, 7, 8, 9] for each in rounds)
    assert len({tuple(each) for each in rounds}) > 3
    assert turns == [budget.cost for budget in islice(train.in_turn(budgets, seed=1), 40)]
    assert turns != [budget.cost for budget in islice(train.in_turn(budgets, seed=2), 40)]


def test_steps_are_spread_over_the_budgets(runner: WholeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    trainings: list[tuple[int, float]] = []
    learn = WholeModel.learn

    def watched(scores_U: Tensor, inventory: UnitInventory, budget: Budget) -> Any:
        taken.append(budget.cost)
        return project(scores_U, inventory, budget)

    def watched_learn(self: WholeModel, trained: Any, tokens_NS: Tensor, training: Any, *args: Any, **named: Any) -> Any:
        trainings.append((len(tokens_NS), training.learning_rate))
        return learn(self, trained, tokens_NS, training, *args, **named)

    monkeypatch.setattr(train, "project", watched)
    monkeypatch.setattr(WholeModel, "learn", watched_learn)
    whole, *budgets = budgets_of(runner, 1.0, 0.9, 0.7, 0.5)
    snapshots = train_gates_at(runner, [whole, *budgets], TOKENS, CONFIG, zeros(runner))
    assert len(snapshots) == 2 and all(one.shape == (runner.inventory.num_units,) for one in snapshots)
    # Six sequences and three of them again, three steps at each budget, none at the one that cuts nothing.
    assert trainings == [(9, gate_learning_rate(None, budgets[-1].share_cut(runner.inventory)))]
    assert sorted(taken[1:]) == sorted(budget.cost for budget in budgets for _ in range(3))


def test_one_budget_is_trained_for_as_ever(runner: WholeModel) -> None:
    (budget,) = budgets_of(runner, 0.6)
    together = train_gates_at(runner, [budget], TOKENS, CONFIG, zeros(runner))
    alone = train_gates(runner, budget, TOKENS, CONFIG, zeros(runner))
    assert all(torch.equal(one, other) for one, other in zip(together, alone, strict=True))
