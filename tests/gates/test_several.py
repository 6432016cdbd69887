"""Gates for several budgets from one training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from optimum_grasprune import Budget, GRASPConfig, UnitMask
from optimum_grasprune.execution import WholeModel
from optimum_grasprune.gates import Snapshot, gate_snapshots, gate_snapshots_at, train_gates

TOKENS = torch.arange(6 * 12).view(6, 12) % 258
CONFIG = GRASPConfig(budget_warmup=0.0, snapshots=2, seed=3)


@pytest.fixture
def runner(model: LlamaForCausalLM) -> WholeModel:
    return WholeModel(model)


def budgets_of(runner: WholeModel, *ratios: float) -> list[Budget]:
    return [Budget(int(ratio * runner.inventory.total_cost)) for ratio in ratios]


def zeros(runner: WholeModel) -> Tensor:
    return torch.zeros(runner.inventory.num_units)


def test_gates_on_their_way_by_hand() -> None:
    start_U, snapshot = torch.tensor([1.0, -1.0]), Snapshot(torch.tensor([3.0, 1.0]), torch.tensor([1.5, 0.8]))
    there = snapshot.on_its_way(start_U, 0.25)
    assert there.multipliers_U is not None
    assert there.scores_U.tolist() == [1.5, -0.5] and there.multipliers_U.tolist() == pytest.approx([1.125, 0.95])
    assert Snapshot(snapshot.scores_U).on_its_way(start_U, 0.5).multipliers_U is None


@pytest.mark.parametrize("multipliers", ["none", "joint"])
def test_each_budget_has_gates_of_its_own(multipliers: Any, runner: WholeModel) -> None:
    whole, *budgets = budgets_of(runner, 1.0, 0.9, 0.7, 0.5)
    config = CONFIG.model_copy(update={"multipliers": multipliers})
    start_U = torch.linspace(-1, 1, runner.inventory.num_units)
    of_budget = gate_snapshots_at(runner, [whole, *budgets], TOKENS, config, start_U)
    assert len(runner.trainings) == 1
    deepest = budgets[-1].share_cut(runner.inventory)
    for moment, final in enumerate(of_budget(budgets[-1])):
        assert torch.equal(of_budget(whole)[moment].scores_U, start_U)  # where nothing is cut, nothing changes
        for budget in budgets[:-1]:
            travelled = (budget.share_cut(runner.inventory) / deepest) ** 0.25
            there = of_budget(budget)[moment]
            assert torch.allclose(there.scores_U, (1 - travelled) * start_U + travelled * final.scores_U, atol=1e-6)
            if final.multipliers_U is None:
                assert multipliers == "none" and there.multipliers_U is None
            else:
                assert there.multipliers_U is not None and not torch.equal(final.multipliers_U, zeros(runner) + 1)
                expected_U = 1 + travelled * (final.multipliers_U - 1)
                assert torch.allclose(there.multipliers_U, expected_U, atol=1e-6)
    # Nesting takes units away and leaves the gates.
    for budget in (budgets[1], budgets[-1]):
        within = budget.within(UnitMask(runner.inventory, start_U > 0))
        assert torch.equal(of_budget(within)[-1].scores_U, of_budget(budget)[-1].scores_U)


@pytest.mark.parametrize("multipliers", ["none", "joint"])
def test_the_smallest_budget_is_trained_for_as_by_itself(multipliers: Any, runner: WholeModel) -> None:
    budgets = budgets_of(runner, 0.9, 0.7, 0.5)
    config = CONFIG.model_copy(update={"multipliers": multipliers})
    together = gate_snapshots_at(runner, budgets, TOKENS, config, zeros(runner))(budgets[-1])
    alone = gate_snapshots(runner, budgets[-1], TOKENS, config, zeros(runner))
    assert len(together) == len(alone) == 2
    for one, other in zip(together, alone, strict=True):
        assert torch.equal(one.scores_U, other.scores_U)
        assert (one.multipliers_U is None) == (multipliers == "none")
        assert one.multipliers_U is None or torch.equal(one.multipliers_U, other.multipliers_U)  # type: ignore[arg-type]


def test_one_budget_is_trained_for_as_ever(runner: WholeModel) -> None:
    (budget,) = budgets_of(runner, 0.6)
    together = gate_snapshots_at(runner, [budget], TOKENS, CONFIG, zeros(runner))(budget)
    alone = train_gates(runner, budget, TOKENS, CONFIG, zeros(runner))
    assert all(torch.equal(one.scores_U, other) for one, other in zip(together, alone, strict=True))
