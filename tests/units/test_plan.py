from __future__ import annotations

import json

import pytest
import torch

from optimum_grasprune import PruningPlan, UnitGroup, UnitInventory, UnitMask
from optimum_grasprune.errors import PlanError
from optimum_grasprune.units import FFN, KV, Address, GroupPlan, UnitKind


def plan_of(inventory: UnitInventory) -> PruningPlan:
    kept = torch.tensor([1, 0, 1, 0, 0, 1, 1, 1, 0, 1, 0, 0], dtype=torch.bool)
    return PruningPlan.from_mask(UnitMask(inventory, kept))


def test_plan_holds_what_the_mask_keeps(small_inventory: UnitInventory) -> None:
    plan = plan_of(small_inventory)
    assert plan.group(Address(0, KV)).kept == (0,)
    assert plan.group(Address(0, FFN)).kept == (0, 3)
    assert plan.group(Address(1, KV)).kept == (0, 1)
    assert plan.group(Address(1, FFN)).kept == (1,)
    assert plan.num_layers == 2


def test_a_plan_is_a_mask_again(small_inventory: UnitInventory) -> None:
    kept = torch.tensor([1, 0, 1, 0, 0, 1, 1, 1, 0, 1, 0, 0], dtype=torch.bool)
    assert torch.equal(plan_of(small_inventory).mask(small_inventory).kept_U, kept)


def test_round_trip_through_json_keeps_every_bit_of_the_scales(small_inventory: UnitInventory) -> None:
    scales = torch.rand(6, generator=torch.Generator().manual_seed(0)) + 0.5
    plan = plan_of(small_inventory).with_scales(scales)
    again = PruningPlan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert again == plan
    flat = [scale for group in again.groups for scale in group.scales or ()]
    assert torch.equal(torch.tensor(flat), scales)


def test_multipliers_of_a_mask_are_the_plan_s(small_inventory: UnitInventory) -> None:
    kept = torch.tensor([1, 0, 1, 0, 0, 1, 1, 1, 0, 1, 0, 0], dtype=torch.bool)
    multipliers = torch.rand(12, generator=torch.Generator().manual_seed(0)) - 0.5
    mask = UnitMask(small_inventory, kept, multipliers)
    assert torch.equal(mask.gates_U, torch.where(kept, multipliers, 0.0))
    assert UnitMask(small_inventory, kept).gates_U is kept
    plan = PruningPlan.from_mask(mask)
    again = PruningPlan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert again == plan != plan.without_multipliers() == plan_of(small_inventory)
    flat = [value for group in again.groups for value in group.multipliers or ()]
    assert torch.equal(torch.tensor(flat), multipliers[kept])
    scaled = plan.with_scales(torch.ones(6))
    assert scaled.without_scales() == plan and scaled.groups[0].multipliers == plan.groups[0].multipliers
    assert "multipliers" not in str(plan_of(small_inventory).to_dict())


def test_a_plan_without_any_attention_is_refused(small_inventory: UnitInventory) -> None:
    kept_U = small_inventory.is_kind_U[FFN].clone()
    with pytest.raises(PlanError, match="the plan leaves no attention in any layer"):
        PruningPlan.from_mask(UnitMask(small_inventory, kept_U)).check(small_inventory)
    kept_U[small_inventory.index(Address(1, KV), 0)] = True
    PruningPlan.from_mask(UnitMask(small_inventory, kept_U)).check(small_inventory)


def test_plan_for_another_model_is_refused(small_inventory: UnitInventory) -> None:
    plan = plan_of(small_inventory)
    wider = UnitInventory((small_inventory.groups[0], UnitGroup(0, FFN, 5, 3), *small_inventory.groups[2:]))
    with pytest.raises(PlanError, match="4 FFN channels in layer 0; this model has 5"):
        plan.check(wider)
    with pytest.raises(PlanError, match="the plan is for 2 layers; this model has 1"):
        plan.check(UnitInventory(small_inventory.groups[:2]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kept": [0, 0]}, "distinct, ascending and below 2"),
        ({"kept": [2]}, "distinct, ascending and below 2"),
        ({"kept": [-1]}, "distinct, ascending and below 2"),
        ({"kind": "mlp"}, "unknown kind in layer 0, mlp"),
        ({"scales": [1.0, 1.0]}, "1 kept units but 2 scales"),
        ({"multipliers": [1.0, 1.0]}, "1 kept units but 2 multipliers"),
        ({"layer": "first"}, "not a pruning plan"),
        ({"layer": True}, "layer should be a whole number, not True"),
        ({"count": 2.5}, "count should be a whole number, not 2.5"),
        ({"kept": "01"}, "a kept unit should be a whole number, not '0'"),
        ({"kept": [float("inf")]}, "a kept unit should be a whole number, not inf"),
        ({"scales": "1"}, "scales and multipliers should be numbers"),
        ({"multipliers": [float("nan")]}, "scales and multipliers should be finite"),
        ({"scales": [10**400]}, "not a pruning plan: OverflowError"),
    ],
)
def test_malformed_plan_is_refused(small_inventory: UnitInventory, change: dict[str, object], message: str) -> None:
    content = plan_of(small_inventory).to_dict()
    content["groups"][0].update(change)
    with pytest.raises(PlanError, match=message):
        PruningPlan.from_dict(content)


@pytest.mark.parametrize(
    ("kind", "count", "kept", "slow"),
    [(FFN, 24, 8, False), (FFN, 24, 9, True), (FFN, 24, 0, False), (FFN, 22, 9, False), (KV, 24, 9, False)],
)
def test_widths_that_gpus_are_slow_at(kind: UnitKind, count: int, kept: int, slow: bool) -> None:
    others = GroupPlan(0, FFN, 16, tuple(range(16)))
    plan = PruningPlan((others, GroupPlan(1, kind, count, tuple(range(kept)))))
    assert plan.makes_slow_widths is slow


def test_whether_whole_layers_go_is_no_word(small_inventory: UnitInventory) -> None:
    content = plan_of(small_inventory).to_dict()
    with pytest.raises(PlanError, match="whole_layers should be true or false"):
        PruningPlan.from_dict({**content, "whole_layers": "false"})
