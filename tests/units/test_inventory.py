from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optimum_grasprune import UnitGroup, UnitInventory
from optimum_grasprune.units import FFN, KV, Address


def test_totals_and_offsets(small_inventory: UnitInventory) -> None:
    assert small_inventory.offsets == (0, 2, 6, 8, 12)
    assert small_inventory.num_units == 12
    assert small_inventory.total_cost == 2 * (2 * 10 + 4 * 3)
    assert small_inventory.total_kv_width == 2 * 2 * 4


def test_per_unit_values(small_inventory: UnitInventory) -> None:
    assert small_inventory.cost_U.tolist() == [10, 10, 3, 3, 3, 3] * 2
    assert small_inventory.kv_width_U.tolist() == [4, 4, 0, 0, 0, 0] * 2
    assert small_inventory.group_U.tolist() == [0, 0, 1, 1, 1, 1, 2, 2, 3, 3, 3, 3]


def test_even_order_starts_every_group_before_going_on(small_inventory: UnitInventory) -> None:
    # Fractions (i + ½) / count: KV ¼ ¾, FFN ⅛ ⅜ ⅝ ⅞.
    assert small_inventory.even_order_U.tolist() == [2, 8, 0, 6, 3, 9, 4, 10, 1, 7, 5, 11]


def test_unknown_unit_is_an_error(small_inventory: UnitInventory) -> None:
    with pytest.raises(IndexError, match=r"layer 0 \(kv\) has 2 units, no unit 2"):
        small_inventory.index(Address(0, KV), 2)
    with pytest.raises(IndexError, match="12 units, no index 12"):
        small_inventory.locate(12)


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 9)), min_size=1, max_size=5))
def test_locate_inverts_index(widths: list[tuple[int, int]]) -> None:
    groups = []
    for layer, (kv, ffn) in enumerate(widths):
        groups += [UnitGroup(layer, KV, kv, 7, 2), UnitGroup(layer, FFN, ffn, 3)]
    inventory = UnitInventory(tuple(groups))
    for index in range(inventory.num_units):
        assert inventory.index(*inventory.locate(index)) == index
    assert sorted(inventory.even_order_U.tolist()) == list(range(inventory.num_units))
    assert torch.equal(inventory.group_U.bincount(), torch.tensor([group.count for group in groups]))
