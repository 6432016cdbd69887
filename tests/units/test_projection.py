"""The projection against its definition in plain Python, and where it computes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from optimum_grasprune import Budget, UnitGroup, UnitInventory, UnitMask, project
from optimum_grasprune.config import BudgetOptions
from optimum_grasprune.errors import BudgetError, GraspruneError, OptionError
from optimum_grasprune.units import FFN, KV, kept_units

SPECIAL = [0.0, -0.0, math.inf, -math.inf, 2.0**-149, -(2.0**-149), 2.0**127, -(2.0**127), 1.0]


def even_ranks(counts: list[int]) -> list[list[int]]:
    """The place of each unit of each group in the even order."""
    units = [(group, place) for group, count in enumerate(counts) for place in range(count)]
    ordered = sorted(units, key=lambda unit: (unit[1] + 0.5) / counts[unit[0]])
    rank = {unit: place for place, unit in enumerate(ordered)}
    return [[rank[group, place] for place in range(count)] for group, count in enumerate(counts)]


def definition(inventory: UnitInventory, budget: Budget, scores: list[float]) -> list[bool]:
    """Block by block: smallest widths first, then whatever still fits, in order of the mean score; ties evenly.

    Without alignment a block is a unit.

    Where that leaves no KV cache, again with the best block that has one paid for as well.
    """
    within = [True] * len(scores) if budget.within_U is None else budget.within_U.tolist()
    scores = [score if allowed else -math.inf for score, allowed in zip(scores, within, strict=True)]
    groups, steps = inventory.groups, [budget.step(group) for group in inventory.groups]
    unit_ranks = even_ranks([group.count for group in groups])
    block_ranks = even_ranks([group.count // step for group, step in zip(groups, steps, strict=True)])
    order, smallest = [], set()
    for number, (group, step, (start, _)) in enumerate(zip(groups, steps, inventory.spans(), strict=True)):
        units = sorted(range(group.count), key=lambda unit: (-scores[start + unit], unit_ranks[number][unit]))
        for place in range(group.count // step):
            block = [start + unit for unit in units[place * step : (place + 1) * step]]
            mean = torch.tensor([scores[unit] for unit in block]).mean().item()
            assert not math.isnan(mean)
            rank = block_ranks[number][place] if max(steps) > 1 else unit_ranks[number][units[place]]
            order.append((-mean, rank, number, place, block))
        smallest |= {(number, place) for place in range(budget.smallest_width(group) // step)}

    def filled(first: set[tuple[int, int]]) -> set[tuple[int, int]]:
        kept = set(first)
        cost = budget.cost - sum(groups[number].cost * steps[number] for number, _ in kept)
        kv = math.inf if budget.kv_width is None else budget.kv_width
        kv -= sum(groups[number].kv_width * steps[number] for number, _ in kept)
        for *_, number, place, _ in sorted(order):
            takes, takes_kv = groups[number].cost * steps[number], groups[number].kv_width * steps[number]
            if (number, place) not in kept and takes <= cost and takes_kv <= kv:
                kept.add((number, place))
                cost, kv = cost - takes, kv - takes_kv
        return kept

    kept = filled(smallest)
    cached = [(number, place) for *_, number, place, _ in sorted(order) if groups[number].kv_width]
    if cached and not any(groups[number].kv_width for number, _ in kept):
        kept = filled({*smallest, cached[0]})
    stays = {unit for *_, number, place, block in order if (number, place) in kept for unit in block}
    return [unit in stays and allowed for unit, allowed in enumerate(within)]


@st.composite
def problems(draw: st.DrawFn) -> tuple[UnitInventory, Budget, list[float]]:
    groups = []
    for layer in range(draw(st.integers(1, 4))):
        if not layer or draw(st.booleans()):
            cost, width = draw(st.sampled_from([9, 9, 14, 40])), draw(st.sampled_from([2, 2, 4, 16]))
            groups.append(UnitGroup(layer, KV, draw(st.integers(1, 6)), cost, width))
        for number in range(draw(st.integers(1, 2))):
            groups.append(UnitGroup(layer, FFN, draw(st.integers(1, 20)), draw(st.integers(2, 7)), number=number))
    inventory = UnitInventory(tuple(groups))
    options = BudgetOptions(
        keep_ratio=draw(st.just(1e-4) | st.floats(0.05, 1.0)),
        kv_keep_ratio=draw(st.none() | st.floats(0.1, 1.0)),
        min_ffn_channels=draw(st.sampled_from([0, 1, 2, 9])),
        min_kv_groups=draw(st.sampled_from([0, 1, 2])),
        ffn_multiple_of=draw(st.sampled_from([1, 1, 2, 3, 8])),
        kv_multiple_of=draw(st.sampled_from([1, 1, 2])),
    )
    try:
        budget = resolved(options, inventory)
    except OptionError:
        assume(False)
    # The mean of a block with both infinities is no number.
    special = SPECIAL if max(budget.multiple_of.values()) == 1 else [each for each in SPECIAL if each != math.inf]
    score = st.sampled_from(special) | st.floats(-9, 9, width=32) | st.integers(0, 2).map(float)
    size = inventory.num_units
    scores = draw(st.lists(score, min_size=size, max_size=size))
    if draw(st.booleans()):
        allowed = draw(st.lists(st.booleans(), min_size=size, max_size=size))
        budget = budget.within(UnitMask(inventory, torch.tensor(allowed)))
    return inventory, budget, scores


def resolved(options: BudgetOptions, inventory: UnitInventory) -> Budget:
    """The budget, or the smallest one there is room for."""
    try:
        return Budget.resolve(options, inventory, inventory.total_cost)
    except BudgetError as error:
        nearest = float(str(error).rsplit(" ", 1)[1])
        assume(nearest <= 1)
        name = "kv_keep_ratio" if "kv_keep_ratio=" in str(error) else "keep_ratio"
        return Budget.resolve(options.model_copy(update={name: nearest}), inventory, inventory.total_cost)


@settings(max_examples=100, deadline=None)
@given(problems())
def test_projection_is_what_its_definition_says(problem: tuple[UnitInventory, Budget, list[float]]) -> None:
    inventory, budget, scores = problem
    expected = definition(inventory, budget, scores)
    assert project(torch.tensor(scores), inventory, budget).kept_U.tolist() == expected
    assert kept_units(torch.tensor(scores, dtype=torch.float64), inventory, budget).tolist() == expected


def test_a_cap_closes_one_kind_after_the_other() -> None:
    # Six costs, in the order of the scores: each is shut out by another unit, and what is cheaper goes on.
    groups = [UnitGroup(layer, KV, 2, 10 + 9 * layer, 2 * (layer + 1)) for layer in range(3)]
    groups += [UnitGroup(layer, FFN, 4, 5 - layer) for layer in range(3)]
    inventory, budget = UnitInventory(tuple(groups)), Budget(81, kv_width=9, minimum={KV: 0, FFN: 0})
    scores = [5.0, 4.0, 9.0, 8.0, 7.0, 6.0, *[3.0] * 4, *[2.0] * 4, *[1.0] * 4]
    mask = project(torch.tensor(scores), inventory, budget)
    assert mask.kept_U.tolist() == definition(inventory, budget, scores)
    # 4 + 4 of the 9 elements, and no more heads; 38 + 20 + 16 + 6 of the 81 parameters.
    assert [len(mask.kept(group.address)) for group in groups] == [0, 2, 0, 4, 4, 2]


@pytest.mark.parametrize("minimum", [0, 1, 5])
def test_a_unit_that_is_better_in_its_group_stays_even_where_all_of_the_group_are_poor(minimum: int) -> None:
    inventory = UnitInventory((UnitGroup(0, FFN, 30, 2), UnitGroup(1, FFN, 8, 2), UnitGroup(1, KV, 2, 7, 4)))
    scores = torch.cat([torch.arange(30.0), torch.arange(8.0) - 100, torch.tensor([-200.0, -300.0])])
    mask = project(scores, inventory, Budget(50, minimum={FFN: minimum, KV: 1}))
    assert mask.kept_U[30:].nonzero().flatten().tolist() == [*range(8 - minimum, 8), 8]
    assert mask.kept_U[:30].sum() == (50 - 7 - 2 * minimum) // 2


class OnOneDevice(TorchDispatchMode):
    """Refuses every operation that makes a tensor elsewhere."""

    def __init__(self, device: str) -> None:
        self.device, self.calls = device, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                assert tensor.device.type == self.device, f"{func} on the {tensor.device}"
        self.calls += 1
        return made


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kv_keep_ratio": 0.6},
        {"min_ffn_channels": 7},
        {"ffn_multiple_of": 4},
        {"kv_multiple_of": 2, "kv_keep_ratio": 0.6},
        {"min_kv_groups": 0, "min_ffn_channels": 0},
    ],
    ids=str,
)
def test_all_is_done_where_the_scores_are_and_nothing_waits_for_that_device(options: dict[str, Any]) -> None:
    """Tensors on the meta device hold no numbers: whoever asks for one fails, as does who mixes them with others."""
    groups = [g for layer in range(3) for g in (UnitGroup(layer, KV, 4, 16, 8), UnitGroup(layer, FFN, 20 - layer, 3))]
    inventory = UnitInventory(tuple(groups))
    budget = Budget.resolve(BudgetOptions(**options), inventory, inventory.total_cost)
    for device in ("meta", "cpu"):
        scores_U = torch.zeros(inventory.num_units, device=device)
        kept_U = kept_units(scores_U, inventory, budget)  # the tables are made, and put there
        assert kept_U.dtype == torch.bool and kept_U.shape == scores_U.shape
        with OnOneDevice(device) as mode:
            assert kept_units(scores_U, inventory, budget).device.type == device
        assert mode.calls


def test_scores_that_are_trained_keep_no_history() -> None:
    inventory = UnitInventory((UnitGroup(0, FFN, 8, 2),))
    scores_U = torch.arange(8.0, requires_grad=True)
    assert not kept_units(scores_U, inventory, Budget(8)).requires_grad and scores_U.grad is None
    assert torch.equal(scores_U.detach(), torch.arange(8.0))


def test_more_units_than_a_key_can_tell_apart_are_refused() -> None:
    # 2 ** 31 units of two costs, of which a key of 32 bits tells 2 ** 30 apart.
    inventory = UnitInventory((UnitGroup(0, KV, 1, 5, 2), UnitGroup(0, FFN, 2**30, 3)))
    with pytest.raises(GraspruneError, match="1073741825 units of 2 different costs are too many"):
        inventory.on(torch.device("cpu"))
