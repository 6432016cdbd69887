from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from optimum_grasprune import Budget, GRASPConfig, UnitInventory, UnitMask
from optimum_grasprune.execution import OfUnits, Training, WholeModel
from optimum_grasprune.execution.training import Schedule
from optimum_grasprune.methods import get_method
from optimum_grasprune.methods.ddp import (
    HIGHEST_RATE,
    LOWEST,
    Limit,
    Rates,
    SoftGates,
    limits_of,
    rates_for,
    relu_straight_through,
    retention,
    softness_at,
)
from optimum_grasprune.selection import choose
from tests.contracts.test_methods import choices, problem_of


def test_the_retention_score_by_hand() -> None:
    scores = retention(torch.tensor([-1.0, 0.0, 0.5, 1.0, 3.0]), 0.5)
    torch.testing.assert_close(scores, torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0]), atol=1e-6, rtol=0)
    a_quarter = retention(torch.tensor([0.05]), 0.1)  # σ(−½ ln 11) = 1 / (1 + √11), stretched
    assert a_quarter.item() == pytest.approx(1.2 / (1 + math.sqrt(11)) - 0.1, abs=1e-6)


def test_it_comes_close_to_the_count_of_what_is_above_zero() -> None:
    z_U = torch.tensor([-0.1, 0.0, 0.02, 0.5, 1.7])
    distance = [float((retention(z_U, softness) - (z_U > 0).float()).abs().sum()) for softness in (0.5, 0.1, 0.005)]
    assert distance[0] > distance[1] > distance[2] and distance[2] < 1e-6


def test_what_is_out_feels_the_gradient_of_zero() -> None:
    z_U = torch.tensor([-0.1, 0.0, 2.0], requires_grad=True)
    (of_relu_U,) = torch.autograd.grad(relu_straight_through(z_U).sum(), [z_U])
    assert of_relu_U.tolist() == [1, 1, 1]
    (gradient_U,) = torch.autograd.grad(retention(z_U, 0.5).sum(), [z_U])
    slope = 1.2 * (1 / 12) * (11 / 12) * math.log(11) / 0.5
    assert gradient_U[:2].tolist() == pytest.approx([slope, slope], rel=1e-5)
    assert 0 < gradient_U[2] < slope  # beyond 2μ, where the clamp alone would leave nothing


def test_softness_falls_with_the_root_of_progress() -> None:
    assert [softness_at(progress, 0.1) for progress in (0.0, 0.25, 1.0)] == pytest.approx([0.5, 0.3, 0.1])


def test_limits_by_hand(small_inventory: UnitInventory) -> None:
    """Two layers with 4 channels of cost 3 and 2 KV groups of cost 10 and 4 KV elements each: 64 and 16 in all."""
    half_U = torch.full((12,), 0.5)
    (cost,) = limits_of(Budget(cost=16), small_inventory)
    assert cost.excess(half_U).item() == pytest.approx(0.25) and cost.excess(half_U / 4).item() == pytest.approx(-0.125)
    _, kv = limits_of(Budget(cost=16, kv_width=12), small_inventory)
    assert kv.excess(half_U).item() == 0  # less than the cap is as good
    assert kv.excess(torch.ones(12)).item() == pytest.approx(0.25)


def gates_of(target: float = 0.25) -> SoftGates:
    limit = Limit(torch.tensor([0.75, 0.25]), target, exact=True)
    return SoftGates(torch.ones(2), [limit], Rates(2e-2, 4e-2, 4e-1), final_softness=0.05)


def test_the_penalty_by_hand_and_that_its_weights_climb() -> None:
    gates = gates_of()
    numbers = [number.clone().requires_grad_() for number in gates.start()]
    penalty = gates.penalty(numbers, 0.0)
    assert penalty.item() == 0 and gates.kept == pytest.approx(1)
    gradients = torch.autograd.grad(penalty, numbers)
    assert [gradients[1].item(), gradients[2].item()] == pytest.approx([0.75 / 3, 0.75**2 / 3])
    with torch.no_grad():
        for number, value in zip(numbers, ([0.5, 0.0], [2.0], [4.0], 3.0), strict=True):
            number.copy_(torch.tensor(value))
    excess = 0.75 / 2 - 0.25  # at μ = ½ the first unit is half there, the second out
    expected = 2 * excess + 4 * excess**2 + 3 * (0.25 + 0) / 2
    assert gates.penalty(numbers, 0.0).item() == pytest.approx(expected / 3, rel=1e-5)
    assert [(pace.rate, pace.ascends) for pace in gates.paces()] == [(1, False), (2, True), (20, True), (2, True)]


def test_multipliers_do_not_fall_far_below_zero() -> None:
    gates = gates_of()
    z_U = torch.tensor([-3.0, 0.7], requires_grad=True)
    assert gates.values([z_U], 0.0).tolist() == pytest.approx([0.0, 0.7])
    assert z_U.tolist() == pytest.approx([LOWEST, 0.7])


def test_a_unit_that_may_not_stay_is_out_from_the_first_step() -> None:
    """And is not counted: what is retained is the share of the other unit."""
    limit = Limit(torch.tensor([0.75, 0.25]), 0.25, exact=True)
    within_U = torch.tensor([True, False])
    gates = SoftGates(torch.ones(2), [limit], Rates(2e-2, 4e-2, 4e-1), 0.05, within_U)
    numbers = [number.clone().requires_grad_() for number in gates.start()]
    assert gates.values(numbers, 0.0).tolist() == [1, 0]
    gates.penalty(numbers, 0.0)
    assert gates.kept == pytest.approx(0.75)


def test_nested_budgets_train_without_what_is_gone(model: LlamaForCausalLM) -> None:
    problem = problem_of(model, GRASPConfig(method="ddp", keep_ratio=0.5))
    within_U = torch.arange(problem.inventory.num_units) % 4 > 0
    larger = UnitMask(problem.inventory, within_U)
    (mask,) = choices(problem.at(problem.budget.within(larger), problem.config)).values()
    assert mask.multipliers_U is not None and not mask.multipliers_U[~within_U].any()
    assert mask.multipliers_U[within_U].any() and not mask.kept_U[~within_U].any()


def test_rates_make_up_for_what_is_missing_unless_they_are_asked_for() -> None:
    def sequences(count: int, length: int) -> torch.Tensor:
        return torch.zeros(1, 1, dtype=torch.int64).expand(count, length)

    config = GRASPConfig(method="ddp")
    assert rates_for(config, sequences(1000, 32768)) == rates_for(config, sequences(4000, 32768))
    assert rates_for(config, sequences(1000, 32768)) == Rates(2e-2, 2e-2, 4e-1)
    fewer = rates_for(config, sequences(250, 1311))  # a quarter of the steps, a hundredth of the tokens
    assert [fewer.gates, fewer.dual, fewer.penalty] == pytest.approx([8e-2, 0.2, 4], rel=1e-3)
    in_passes = config.model_copy(update={"epochs": 2, "batch_size": 2})
    assert rates_for(in_passes, sequences(250, 1311)).gates == pytest.approx(8e-2)
    assert rates_for(in_passes, sequences(250, 1311)).dual == pytest.approx(0.2 / math.sqrt(2), rel=1e-3)
    assert rates_for(config, sequences(3, 20)).gates == HIGHEST_RATE
    asked = GRASPConfig(method="ddp", learning_rate=0.3, dual_learning_rate=0.2, penalty_learning_rate=0.1)
    assert rates_for(asked, sequences(250, 512)) == Rates(0.3, 0.2, 0.1)


def test_training_brings_the_multipliers_to_the_budget(model: LlamaForCausalLM) -> None:
    """The projection at the end has little left to do, and what stays is better than without the multipliers."""
    problem = problem_of(model, GRASPConfig(method="ddp", keep_ratio=0.6, epochs=60))
    inventory, runner = problem.inventory, problem.runner
    (mask,) = choices(problem).values()
    z_U = mask.multipliers_U
    assert z_U is not None and z_U.min() == 0 and z_U.max() > 1
    assert float(inventory.cost_U[z_U > 0].sum()) / inventory.total_cost == pytest.approx(0.6, abs=0.08)
    cost = int(inventory.cost_U[mask.kept_U].sum())
    assert problem.budget.cost - inventory.cost_U.min() < cost <= problem.budget.cost

    def loss(mask: UnitMask) -> float:
        with runner.gated() as gates:
            gates.values_U = mask.gates_U
            return runner.mean_loss(problem.tokens_NS)

    assert loss(mask) < loss(UnitMask(inventory, mask.kept_U)) - 0.02


def test_a_cap_on_the_kv_cache_is_a_limit_of_its_own(model: LlamaForCausalLM) -> None:
    shares = []
    for cap in (None, 0.5):
        problem = problem_of(model, GRASPConfig(method="ddp", keep_ratio=0.8, kv_keep_ratio=cap, epochs=60))
        (mask,) = choices(problem).values()
        z_U, kv_U = mask.multipliers_U, problem.inventory.kv_width_U
        assert z_U is not None
        shares.append(float(kv_U[z_U > 0].sum()) / problem.inventory.total_kv_width)
    assert shares[1] <= 2 / 3 < shares[0]


def test_it_trains_with_the_dense_predictions_and_a_warm_up(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Training] = []
    learn = WholeModel.learn

    def watched(
        self: WholeModel, trained: OfUnits, tokens: torch.Tensor, training: Training, *rest: Any, **more: Any
    ) -> object:
        seen.append(training)
        return learn(self, trained, tokens, training, *rest, **more)

    monkeypatch.setattr(WholeModel, "learn", watched)
    choices(problem_of(model, GRASPConfig(method="ddp")))
    choices(problem_of(model, GRASPConfig(method="ddp", kl_weight=0.25)))
    assert [training.kl_weight for training in seen] == [2 / 3, 0.25]
    assert {training.warmup for training in seen} == {0.1}


def test_the_winner_has_its_multipliers_in_the_plan(model: LlamaForCausalLM) -> None:
    problem = problem_of(model, GRASPConfig(method="ddp", keep_ratio=0.5, epochs=2))
    blind = replace(problem, held_out_NS=problem.held_out_NS[:0])
    candidates = choices(problem)
    (mask,) = candidates.values()
    outcome = choose(candidates, get_method("ddp").chain_for(problem.config), blind)
    assert outcome.plan is not None and outcome.stages == () and mask.multipliers_U is not None
    flat = [value for group in outcome.plan.groups for value in group.multipliers or ()]
    assert torch.equal(torch.tensor(flat), mask.multipliers_U[mask.kept_U])


def test_a_learning_rate_that_rises_first() -> None:
    factors = [Schedule(10, "constant", 0.3).factor(step) for step in range(5)]
    assert factors == pytest.approx([0.25, 0.5, 0.75, 1, 1])
    factors = [Schedule(10, "cosine", 0.2).factor(step) for step in (0, 1, 2, 6, 10)]
    assert factors == pytest.approx([1 / 3, 2 / 3, 1, 0.5, 0])
