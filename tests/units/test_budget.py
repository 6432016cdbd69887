from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optimum_grasprune import Budget, UnitGroup, UnitInventory, UnitMask, project
from optimum_grasprune.config import BudgetOptions
from optimum_grasprune.errors import BudgetError, GraspruneError, OptionError
from optimum_grasprune.units import FFN, KV, Address


def kept(mask: UnitMask) -> list[int]:
    return mask.kept_U.nonzero().flatten().tolist()


def resolve(inventory: UnitInventory, total: int | None = None, **options: object) -> Budget:
    return Budget.resolve(BudgetOptions(**options), inventory, total or inventory.total_cost)


def test_best_units_stay_in_order_of_score(small_inventory: UnitInventory) -> None:
    scores = torch.tensor([9.0, 1, 8, 2, 3, 4, 7, 0, 6, 5, 0.5, 0.2])
    # Ascending by score the order is 0 2 6 8 9 5 4 3 1 …; 10 + 3 + 10 + 3 + 3 + 3 = 32 is the budget.
    mask = project(scores, small_inventory, resolve(small_inventory, keep_ratio=0.5))
    assert kept(mask) == [0, 2, 5, 6, 8, 9]
    assert mask.kept_cost == 32


def test_a_cheaper_unit_takes_what_a_dearer_one_left(small_inventory: UnitInventory) -> None:
    scores = torch.tensor([9.0, 8, 7, 2, 3, 4, 6, 5, 1, 0.5, 0.4, 0.3])
    # 35 allowed. Smallest widths: 0, 2, 6, 8 = 26. Unit 1 (10) does not fit, nor unit 7; channels 5, 4 and 3 do.
    mask = project(scores, small_inventory, resolve(small_inventory, keep_ratio=0.55))
    assert kept(mask) == [0, 2, 3, 4, 5, 6, 8]
    assert mask.kept_cost == 35


def test_no_layer_is_emptied_and_what_it_gets_back_is_paid_for(small_inventory: UnitInventory) -> None:
    scores = torch.tensor([1.0, 0, 9, 9, 9, 9, 9, 9, 0, 0, 0, 1])
    mask = project(scores, small_inventory, resolve(small_inventory, keep_ratio=0.5))
    assert 0 in kept(mask) and 11 in kept(mask)
    assert mask.kept_cost <= 32


def test_equal_scores_are_kept_evenly_over_layers_and_kinds() -> None:
    groups = [group for layer in range(8) for group in (UnitGroup(layer, KV, 4, 16, 8), UnitGroup(layer, FFN, 64, 3))]
    inventory = UnitInventory(tuple(groups))
    mask = project(torch.zeros(inventory.num_units), inventory, resolve(inventory, keep_ratio=0.5))
    assert {len(mask.kept(Address(layer, KV))) for layer in range(8)} == {2}
    assert {len(mask.kept(Address(layer, FFN))) for layer in range(8)} == {32}


def test_saturated_and_signed_zero_scores_sort_like_numbers(small_inventory: UnitInventory) -> None:
    scores = torch.tensor([0.0, -0.0, 1e-30, -1e-30, float("inf"), -5, -0.0, 0.0, -1, -2, -3, float("-inf")])
    mask = project(scores, small_inventory, resolve(small_inventory, keep_ratio=0.5))
    assert {2, 4} <= set(kept(mask)) and 11 not in kept(mask)


def test_kv_cap_is_a_second_budget(small_inventory: UnitInventory) -> None:
    scores = torch.tensor([9.0, 8, 0, 0, 0, 0, 7, 6, 0, 0, 0, 0])
    mask = project(scores, small_inventory, resolve(small_inventory, keep_ratio=0.9, kv_keep_ratio=0.5))
    assert mask.kept_kv_width == 8
    assert mask.share(KV) == 0.5 and mask.share(FFN) == 1.0


def test_the_share_cut_is_the_larger_of_parameters_and_kv_cache(small_inventory: UnitInventory) -> None:
    # 64 parameters: 0.8 of them is 51; four KV heads, of which a cap of 0.5 leaves two.
    assert resolve(small_inventory, keep_ratio=0.8).share_cut(small_inventory) == 1 - 51 / 64
    assert resolve(small_inventory, keep_ratio=0.8, kv_keep_ratio=0.5).share_cut(small_inventory) == 0.5
    assert resolve(small_inventory, keep_ratio=1).share_cut(small_inventory) == 0


def test_alignment_keeps_blocks_by_their_mean_score(small_inventory: UnitInventory) -> None:
    scores = torch.tensor([1.0, 0, 9, 1, 8, 1, 1, 0, 6, 6, 5, 5])
    # Channel blocks of two: layer 0 (9, 8) and (1, 1), layer 1 (6, 6) and (5, 5). 20 + 3 * 6 = 38 of 41.6.
    mask = project(scores, small_inventory, resolve(small_inventory, keep_ratio=0.65, ffn_multiple_of=2))
    assert kept(mask) == [0, 2, 4, 6, 8, 9, 10, 11]


def test_alignment_and_the_cap_on_the_kv_cache_hold_together() -> None:
    inventory = UnitInventory((UnitGroup(0, KV, 5, 10, 4), UnitGroup(1, KV, 4, 10, 4), UnitGroup(1, FFN, 5, 3)))
    scores = torch.tensor([5.0, 4, 3, 2, 1, 9, 8, 7, 6, 0, 0, 0, 0, 1])
    # 36 KV elements, of which 27 may stay: three pairs of heads at 8, the second pair of layer 1 among them. The fifth
    # head of layer 0 and the fifth channel, which fill no block, are never kept beside them.
    budget = resolve(inventory, keep_ratio=1, kv_keep_ratio=0.75, kv_multiple_of=2, ffn_multiple_of=4)
    mask = project(scores, inventory, budget)
    assert kept(mask) == [0, 1, 5, 6, 7, 8, 9, 10, 11, 13]


def test_total_budget_counts_what_is_never_pruned(small_inventory: UnitInventory) -> None:
    budget = resolve(small_inventory, total=164, budget="total", keep_ratio=0.9)
    assert budget.cost == 147 - 100  # floor(0.9 * 164) less the 100 outside the inventory


def test_what_compensation_adds_counts_in_a_total_budget(small_inventory: UnitInventory) -> None:
    options = BudgetOptions(keep_ratio=0.9, budget="total")
    assert Budget.resolve(options, small_inventory, 164, 20).cost == 147 - 100 - 20
    with pytest.raises(BudgetError, match=r"that the compensation adds; the nearest feasible value is 0.9513"):
        Budget.resolve(options, small_inventory, 164, 30)
    assert Budget.resolve(options.model_copy(update={"keep_ratio": 0.9513}), small_inventory, 164, 30).cost == 26
    prunable = BudgetOptions(keep_ratio=0.9)
    assert Budget.resolve(prunable, small_inventory, 164, 20) == Budget.resolve(prunable, small_inventory, 164)


def test_ratio_is_read_as_the_decimal_that_was_written() -> None:
    inventory = UnitInventory((UnitGroup(0, FFN, 100, 1),))
    assert resolve(inventory, keep_ratio=0.29).cost == 29  # 0.29 * 100 is 28.999… in floating point


def test_infeasible_budget_names_the_nearest_feasible_value(small_inventory: UnitInventory) -> None:
    with pytest.raises(BudgetError, match=r"keep_ratio=0.2: .*nearest feasible value is 0.4063") as caught:
        resolve(small_inventory, keep_ratio=0.2)
    assert caught.value.flag_line.startswith("--keep-ratio 0.2: too small for at least 1 FFN channels a layer")
    assert resolve(small_inventory, keep_ratio=0.4063).cost == 26
    with pytest.raises(BudgetError, match=r"kv_keep_ratio=0.4: .*nearest feasible value is 0.5"):
        resolve(small_inventory, keep_ratio=0.9, kv_keep_ratio=0.4)
    with pytest.raises(BudgetError, match="100 parameters that are never pruned"):
        resolve(small_inventory, total=164, budget="total", keep_ratio=0.5)


def test_an_infeasible_budget_lists_what_it_is_too_small_for_and_nothing_else(small_inventory: UnitInventory) -> None:
    always = "at least 1 FFN channels a layer, at least 1 KV head groups a layer"
    with pytest.raises(BudgetError, match=f"^keep_ratio=0.2: too small for {always}; the nearest"):
        resolve(small_inventory, keep_ratio=0.2)
    options = BudgetOptions(keep_ratio=0.9, budget="total", ffn_multiple_of=2)
    outside = "100 parameters that are never pruned, 30 that the compensation adds"
    with pytest.raises(BudgetError, match=f"{always}, FFN channels in multiples of 2, {outside}; the nearest"):
        Budget.resolve(options, small_inventory, 164, 30)
    options = BudgetOptions(keep_ratio=1, kv_keep_ratio=0.4, budget="total")
    with pytest.raises(BudgetError, match=f"^kv_keep_ratio=0.4: too small for {always}; the nearest"):
        Budget.resolve(options, small_inventory, 164, 1)


def test_impossible_alignment_names_the_option(small_inventory: UnitInventory) -> None:
    with pytest.raises(
        OptionError, match="kv_multiple_of=3: no multiple of it lies between the minimum 1 and the 2 KV"
    ):
        resolve(small_inventory, kv_multiple_of=3)
    with pytest.raises(OptionError, match="ffn_multiple_of=5: .* the minimum 1 and the 4 FFN channels of layer 0"):
        resolve(small_inventory, ffn_multiple_of=5)
    with pytest.raises(OptionError, match="tensor_parallel_size=4: .*2 KV head groups of layer 0"):
        resolve(small_inventory, tensor_parallel_size=4)
    with pytest.raises(OptionError, match="tensor_parallel_size=3: "):  # two heads at a time would do
        resolve(small_inventory, kv_multiple_of=2, tensor_parallel_size=3)


def test_whole_groups_may_go_but_not_all_that_attend(small_inventory: UnitInventory) -> None:
    scores = torch.tensor([1.0, 0, 9, 9, 9, 9, 2, 1, 8, 8, 8, 8])
    options = {"keep_ratio": 0.5, "min_kv_groups": 0, "min_ffn_channels": 0}
    # 32 of 64: all eight channels are 24 and no head fits beside them, so that the best one stays in their place.
    assert kept(project(scores, small_inventory, resolve(small_inventory, **options))) == [2, 3, 4, 5, 6, 8, 9, 10]
    aligned = resolve(small_inventory, **options, ffn_multiple_of=2)
    assert kept(project(scores, small_inventory, aligned)) == [2, 3, 4, 5, 6, 8, 9]
    # 22: two heads, at no channel anywhere.
    few = resolve(small_inventory, keep_ratio=0.35, min_kv_groups=0, min_ffn_channels=0)
    assert kept(project(torch.tensor([9.0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), small_inventory, few)) == [0, 1]


def test_a_budget_too_small_for_any_attention_is_refused(small_inventory: UnitInventory) -> None:
    line = "keep_ratio=0.1: too small for one KV head group in the model; the nearest feasible value is 0.1563"
    with pytest.raises(BudgetError, match=line):
        resolve(small_inventory, keep_ratio=0.1, min_kv_groups=0, min_ffn_channels=0)
    assert resolve(small_inventory, keep_ratio=0.1563, min_kv_groups=0, min_ffn_channels=0).cost == 10
    with pytest.raises(OptionError, match="kv_multiple_of=3: .* the minimum 1 and the 2 KV head groups"):
        resolve(small_inventory, kv_multiple_of=3, min_kv_groups=0)


def test_bad_scores_are_refused(small_inventory: UnitInventory) -> None:
    budget = resolve(small_inventory, keep_ratio=0.5)
    with pytest.raises(GraspruneError, match=r"scores have shape \(3,\), the inventory has 12 units"):
        project(torch.zeros(3), small_inventory, budget)
    scores = torch.zeros(12)
    scores[9] = float("nan")
    with pytest.raises(GraspruneError, match="FFN channel 1 of layer 1 is NaN"):
        project(scores, small_inventory, budget)


@st.composite
def problems(draw: st.DrawFn) -> tuple[UnitInventory, BudgetOptions, torch.Tensor, int]:
    groups = []
    for layer in range(draw(st.integers(1, 4))):
        head_cost = draw(st.integers(4, 40))
        groups.append(UnitGroup(layer, KV, draw(st.integers(1, 6)), head_cost, draw(st.sampled_from([2, 4, 16]))))
        groups.append(UnitGroup(layer, FFN, draw(st.integers(1, 24)), draw(st.integers(1, 7))))
    inventory = UnitInventory(tuple(groups))
    options = BudgetOptions(
        keep_ratio=draw(st.floats(0.05, 1.0)),
        budget=draw(st.sampled_from(["prunable", "total"])),
        kv_keep_ratio=draw(st.none() | st.floats(0.1, 1.0)),
        min_ffn_channels=draw(st.integers(0, 5)),
        min_kv_groups=draw(st.integers(0, 2)),
        ffn_multiple_of=draw(st.sampled_from([1, 1, 2, 3])),
        kv_multiple_of=draw(st.sampled_from([1, 1, 2])),
    )
    generator = random.Random(draw(st.integers(0, 10**6)))
    levels = draw(st.sampled_from([1, 3, 10**6]))  # few levels make many ties
    scores = torch.tensor([float(generator.randrange(levels)) for _ in range(inventory.num_units)])
    return inventory, options, scores, inventory.total_cost + draw(st.integers(0, 200))


@settings(max_examples=200, deadline=None)
@given(problems())
def test_kept_units_meet_the_budget_and_no_other_would_fit(
    problem: tuple[UnitInventory, BudgetOptions, torch.Tensor, int],
) -> None:
    inventory, options, scores, total = problem
    try:
        budget = Budget.resolve(options, inventory, total)
    except OptionError:
        return  # infeasible: refused before anything is projected
    mask = project(scores, inventory, budget)
    fixed = total - inventory.total_cost if options.budget == "total" else 0
    assert mask.kept_cost + fixed <= options.keep_ratio * (inventory.total_cost + fixed) + 1e-9
    cost_left = budget.cost - mask.kept_cost
    kv_left = float("inf") if budget.kv_width is None else budget.kv_width - mask.kept_kv_width
    assert cost_left >= 0 and kv_left >= 0
    assert mask.kept_kv_width > 0
    for group in inventory.groups:
        units = mask.kept(group.address)
        step = budget.step(group)
        assert len(units) % step == 0
        assert len(units) >= min(budget.minimum[group.kind], group.count)
        if len(units) + step <= group.count:  # one more block of this group would not have fitted
            assert group.cost * step > cost_left or group.kv_width * step > kv_left
        span = inventory.slice_of(group.address)
        cut = scores[span][~mask.kept_U[span]]
        if len(cut) and units:  # inside a group the best stay
            assert scores[span][mask.kept_U[span]].min() >= cut.max()


def reference_projection(inventory: UnitInventory, scores: torch.Tensor, budget: Budget) -> list[int]:
    """The definition, unit by unit: smallest widths first, then whatever still fits, in order of score.

    Where that leaves no KV cache, again with the best unit that has one paid for as well.
    """
    tie_rank = {unit: rank for rank, unit in enumerate(inventory.even_order_U.tolist())}
    order = sorted(range(inventory.num_units), key=lambda unit: (-scores[unit].item(), tie_rank[unit]))
    smallest: list[int] = []
    for group in inventory.groups:
        span = inventory.slice_of(group.address)
        smallest += [unit for unit in order if span.start <= unit < span.stop][: budget.smallest_width(group)]
    kept = filled(smallest, order, inventory, budget)
    if not inventory.kv_width_U[kept].any():
        best = next(unit for unit in order if inventory.kv_width_U[unit])
        kept = filled([*smallest, best], order, inventory, budget)
    return sorted(kept)


def filled(start: list[int], order: list[int], inventory: UnitInventory, budget: Budget) -> list[int]:
    kept, cost, kv = list(start), int(inventory.cost_U[start].sum()), int(inventory.kv_width_U[start].sum())
    for unit in order:
        unit_cost, unit_kv = int(inventory.cost_U[unit]), int(inventory.kv_width_U[unit])
        fits = budget.kv_width is None or kv + unit_kv <= budget.kv_width
        if unit not in kept and fits and cost + unit_cost <= budget.cost:
            kept.append(unit)
            cost, kv = cost + unit_cost, kv + unit_kv
    return kept


@settings(max_examples=200, deadline=None)
@given(problems())
def test_projection_equals_its_definition(problem: tuple[UnitInventory, BudgetOptions, torch.Tensor, int]) -> None:
    inventory, options, scores, total = problem
    try:
        budget = Budget.resolve(
            options.model_copy(update={"ffn_multiple_of": 1, "kv_multiple_of": 1}), inventory, total
        )
    except OptionError:
        return
    assert kept(project(scores, inventory, budget)) == reference_projection(inventory, scores, budget)


@settings(max_examples=50, deadline=None)
@given(problems(), st.floats(0.05, 0.9))
def test_an_infeasible_ratio_becomes_feasible_at_the_value_it_names(
    problem: tuple[UnitInventory, BudgetOptions, torch.Tensor, int], scale: float
) -> None:
    inventory, options, _, total = problem
    tight = options.model_copy(update={"keep_ratio": options.keep_ratio * scale, "kv_keep_ratio": None})
    try:
        Budget.resolve(tight, inventory, total)
    except BudgetError as error:
        nearest = float(str(error).rsplit(" ", 1)[1])
        Budget.resolve(tight.model_copy(update={"keep_ratio": nearest}), inventory, total)
    except OptionError:
        pass  # an alignment that no ratio satisfies


def test_only_units_of_the_larger_mask_stay(small_inventory: UnitInventory) -> None:
    larger = project(torch.arange(12.0), small_inventory, resolve(small_inventory, keep_ratio=0.75))
    assert kept(larger) == [1, 4, 5, 6, 7, 8, 9, 10, 11]  # 10 + 2 * 3 of layer 0, all of layer 1: 48
    scores = torch.tensor([9.0, 1, 8, 8, 8, 1, 2, 3, 7, 6, 5, 4])
    budget = resolve(small_inventory, keep_ratio=0.6)
    assert kept(project(scores, small_inventory, budget)) == [0, 2, 3, 4, 7, 8, 9, 10]
    # 38 may stay. Smallest widths: 1, 4, 7, 8 = 26; then channels 9, 10, 11 and 5, since 2 and 3 are out for good.
    assert kept(project(scores, small_inventory, budget.within(larger))) == [1, 4, 5, 7, 8, 9, 10, 11]


@settings(max_examples=60)
@given(seed=st.integers(0, 10_000), step=st.sampled_from([1, 2]), ratio=st.floats(0.55, 0.8))
def test_nested_masks_meet_their_budgets(seed: int, step: int, ratio: float) -> None:
    groups = [group for layer in range(3) for group in (UnitGroup(layer, KV, 2, 11, 4), UnitGroup(layer, FFN, 9, 3))]
    inventory = UnitInventory(tuple(groups))
    generator = torch.Generator().manual_seed(seed)
    larger_U, smaller_U = torch.randn(2, inventory.num_units, generator=generator)
    options = {"ffn_multiple_of": step, "min_ffn_channels": 2}
    larger = project(larger_U, inventory, resolve(inventory, keep_ratio=0.85, **options))
    budget = resolve(inventory, keep_ratio=ratio, **options)
    mask = project(smaller_U, inventory, budget.within(larger))
    assert not (mask.kept_U & ~larger.kept_U).any()
    assert mask.kept_cost <= budget.cost
    for group in inventory.groups:
        width = len(mask.kept(group.address))
        assert width >= budget.smallest_width(group) and width % budget.step(group) == 0
    # Nothing that may stay would still have fitted.
    left = budget.cost - mask.kept_cost
    out_U = larger.kept_U & ~mask.kept_U
    assert step > 1 or not out_U.any() or int(inventory.cost_U[out_U].min()) > left
