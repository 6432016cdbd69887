from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from optimum_grasprune import Budget, GRASPConfig, UnitGroup, UnitInventory, project
from optimum_grasprune.config import BudgetOptions
from optimum_grasprune.execution import WholeModel
from optimum_grasprune.families import family_of
from optimum_grasprune.selection.width_search import (
    Ledger,
    SearchLimits,
    WidthLoss,
    Widths,
    mask_of,
    mask_of_best_widths,
    search_widths,
    transfer,
    widths_of,
)
from optimum_grasprune.units import FFN, KV


def test_mask_keeps_the_best_of_each_group(small_inventory: UnitInventory) -> None:
    scores = torch.tensor([0.0, 1, 4, 3, 2, 1, 5, 6, 0, 9, 0, 9])
    mask = mask_of((1, 2, 2, 1), scores, small_inventory)
    assert mask.kept_U.nonzero().flatten().tolist() == [1, 2, 3, 6, 7, 9]
    assert widths_of(mask) == (1, 2, 2, 1)


def test_ledger_by_hand(small_inventory: UnitInventory) -> None:
    # KV groups cost 10 with 4 KV elements, FFN channels 3.
    ledger = Ledger(small_inventory, Budget(cost=40, kv_width=8))
    assert ledger.room((1, 2, 1, 1)) == (11, 0)
    assert ledger.grown((1, 2, 1, 1), 0, 1) == (1, 2, 1, 1)  # no KV elements are left
    assert ledger.grown((1, 2, 1, 1), 3, 9) == (1, 2, 1, 4)  # three channels fit
    assert ledger.shrunk((1, 2, 1, 1), 1, 9) == (1, 1, 1, 1)  # one channel must stay
    assert ledger.filled((1, 1, 1, 1), 1) == (1, 4, 1, 2)
    assert ledger.fits((1, 4, 1, 2)) and not ledger.fits((2, 4, 1, 2))


@given(st.data())
def test_transfers_meet_every_budget(data: st.DataObject) -> None:
    layers = data.draw(st.integers(1, 4))
    groups = []
    for layer in range(layers):
        groups += [
            UnitGroup(layer, KV, data.draw(st.integers(2, 8)), data.draw(st.integers(5, 40)), 4),
            UnitGroup(layer, FFN, data.draw(st.integers(4, 40)), data.draw(st.integers(1, 6))),
        ]
    inventory = UnitInventory(tuple(groups))
    options = BudgetOptions(
        keep_ratio=data.draw(st.floats(0.6, 0.95)),
        kv_keep_ratio=data.draw(st.sampled_from([None, 0.9])),
        ffn_multiple_of=data.draw(st.sampled_from([1, 2])),
        min_ffn_channels=data.draw(st.integers(0, 3)),
    )
    try:
        budget = Budget.resolve(options, inventory, inventory.total_cost)
    except Exception:
        return
    ledger = Ledger(inventory, budget)
    generator = random.Random(data.draw(st.integers(0, 99)))
    widths = widths_of(project(torch.zeros(inventory.num_units), inventory, budget))
    for _ in range(8):
        widths = transfer(widths, ledger, 0.3, generator)
        assert ledger.fits(widths)
        for width, group in zip(widths, groups, strict=True):
            assert budget.smallest_width(group) <= width <= group.count
            assert width % budget.step(group) == 0
        assert ledger.filled(widths, 0) == widths  # nothing that was cut would still have fitted


def test_a_transfer_moves_the_share_of_a_group_that_it_may_at_most_and_mostly_less() -> None:
    inventory = UnitInventory((UnitGroup(0, FFN, 40, 3), UnitGroup(1, FFN, 40, 3)))
    ledger = Ledger(inventory, Budget(cost=40 * 3))
    for largest, most in ((0.25, 10), (0.1, 4), (0.01, 1)):
        widths = [transfer((20, 20), ledger, largest, random.Random(seed)) for seed in range(100)]
        moved = sorted(abs(first - 20) for first, _ in widths)
        assert all(first + second == 40 for first, second in widths)
        assert (moved[0], moved[-1]) == (1, most)
        assert moved[50] <= 0.3 * most + 1  # the square of a uniform number is below a quarter half of the time


def test_transfers_shrink_over_the_search(small_inventory: UnitInventory, monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[float] = []

    def watched(widths: Widths, ledger: Ledger, largest: float, generator: random.Random) -> Widths:
        shares.append(largest)
        return transfer(widths, ledger, largest, generator)

    monkeypatch.setattr("optimum_grasprune.selection.width_search.transfer", watched)
    ledger = Ledger(small_inventory, Budget(cost=38))
    search_widths((1, 4, 1, 2), ledger, lambda widths: float(widths[1]), SearchLimits(4), seed=0)
    assert shares == [0.25, 0.1875, 0.125, 0.0625]


def test_search_stays_where_it_is_as_long_as_nothing_is_better(small_inventory: UnitInventory) -> None:
    ledger, seen = Ledger(small_inventory, Budget(cost=38)), []
    found = search_widths((1, 4, 1, 2), ledger, lambda widths: seen.append(widths) or 1.0, SearchLimits(20), seed=0)
    assert found == ((1, 4, 1, 2), 1.0)
    assert 1 < len(seen) == len(set(seen))  # nothing is measured twice


def test_search_finds_the_better_allocation_and_is_deterministic(small_inventory: UnitInventory) -> None:
    ledger = Ledger(small_inventory, Budget(cost=38))
    start = (1, 4, 1, 2)

    def loss(widths: tuple[int, ...]) -> float:
        return abs(widths[1] - 2) + abs(widths[3] - 4)  # the second layer needs its channels more

    best, lowest = search_widths(start, ledger, loss, SearchLimits(60), seed=0)
    assert (best, lowest) == ((1, 2, 1, 4), 0)
    assert search_widths(start, ledger, loss, SearchLimits(60), seed=0) == (best, lowest)


def test_search_stops_at_its_time_limit_and_never_gets_worse(small_inventory: UnitInventory) -> None:
    calls = []

    def loss(widths: tuple[int, ...]) -> float:
        calls.append(widths)
        return float(len(calls))  # every proposal is worse

    ledger = Ledger(small_inventory, Budget(cost=38))
    assert search_widths((1, 4, 1, 2), ledger, loss, SearchLimits(50, seconds=1e-9), seed=0)[0] == (1, 4, 1, 2)
    assert len(calls) == 1
    assert search_widths((1, 4, 1, 2), ledger, loss, SearchLimits(50), seed=0)[0] == (1, 4, 1, 2)


def test_searched_mask_has_no_higher_loss_on_a_real_model(model: LlamaForCausalLM) -> None:
    family = family_of(model.config)
    inventory = family.inventory(model)
    budget = Budget.resolve(GRASPConfig(keep_ratio=0.5), inventory, 0)
    scores = torch.randn(inventory.num_units, generator=torch.Generator().manual_seed(0))
    loss = WidthLoss(WholeModel(model), torch.arange(80).view(4, 20))
    start = project(scores, inventory, budget)
    found = mask_of_best_widths(widths_of(start), scores, loss, budget, SearchLimits(25), seed=0)
    assert found.kept_cost <= budget.cost
    assert loss(found) < loss(start)


def test_no_group_grows_beyond_what_may_stay(small_inventory: UnitInventory) -> None:
    scores = torch.arange(12.0)
    larger = project(scores, small_inventory, Budget(cost=45))
    assert widths_of(larger) == (1, 1, 2, 4)
    ledger = Ledger(small_inventory, Budget(cost=64).within(larger))
    assert ledger.filled((1, 1, 1, 1), 0) == (1, 1, 2, 4)
    assert Ledger(small_inventory, Budget(cost=64)).filled((1, 1, 1, 1), 0) == (2, 4, 2, 4)
