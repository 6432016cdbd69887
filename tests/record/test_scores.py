from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optimum_grasprune import UnitGroup, UnitInventory, UnitMask
from optimum_grasprune.errors import CheckpointError
from optimum_grasprune.record import ReportNumbers, TrainingCurves, score_distribution
from optimum_grasprune.record.scores import BINS
from optimum_grasprune.units import FFN, KV

INVENTORY = UnitInventory((UnitGroup(0, FFN, 4, cost=1), UnitGroup(0, KV, 2, cost=1, kv_width=2)))
KEPT = torch.tensor([False, False, True, True, True, True])


def mask(*scores: float, kept_U: torch.Tensor = KEPT) -> UnitMask:
    return UnitMask(INVENTORY, kept_U, scores_U=torch.tensor(scores))


def test_by_hand() -> None:
    found = score_distribution(mask(0.0, 1.0, 2.0, 6.0, 3.0, -6.0))
    assert found is not None and not found.logarithmic
    assert (found.edges[0], found.edges[-1], len(found.edges)) == (-6.0, 6.0, BINS + 1)
    ffn, kv = found.kinds
    assert (ffn.kind, kv.kind) == ("ffn", "kv")
    places = {
        place: (ffn.stayed[place], ffn.went[place]) for place in range(BINS) if ffn.stayed[place] + ffn.went[place]
    }
    assert places == {30: (0, 1), 35: (0, 1), 40: (1, 0), BINS - 1: (1, 0)}  # bins of a fifth
    assert ffn.cut == 2.0 and kv.cut is None  # all heads stayed
    assert [place for place in range(BINS) if kv.stayed[place]] == [0, 45] and not any(kv.went)


def test_scores_of_many_orders_of_magnitude() -> None:
    found = score_distribution(mask(0.0, 1e-6, 1e-3, 1.0, 1e2, 1e3))
    assert found is not None and found.logarithmic
    assert (found.edges[0], found.edges[-1]) == (1e-6, 1e3)
    assert found.kinds[0].went[0] == 2  # 0 is with the smallest


def test_nothing_to_show() -> None:
    assert score_distribution(UnitMask(INVENTORY, KEPT)) is None
    assert score_distribution(mask(*[-math.inf] * 6)) is None
    equal = score_distribution(mask(*[1.0] * 6))
    assert equal is not None and sum(equal.kinds[0].stayed) == 2


@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=6, max_size=6), st.lists(st.booleans(), min_size=6, max_size=6)
)
def test_every_unit_is_counted_once(scores: list[float], kept: list[bool]) -> None:
    found = score_distribution(mask(*scores, kept_U=torch.tensor(kept)))
    assert found is not None
    counts = [(sum(each.stayed), sum(each.went)) for each in found.kinds]
    assert counts == [(sum(kept[:4]), 4 - sum(kept[:4])), (sum(kept[4:]), 2 - sum(kept[4:]))]
    assert list(found.edges) == sorted(found.edges)


def test_the_file_is_read_as_it_is_written() -> None:
    curves = TrainingCurves(label="gates", steps=2, ends=(1, 2), loss=(1.0, 0.5), readings={"changed.kv": (None, 0.5)})
    numbers = ReportNumbers(trainings=(curves,), scores=score_distribution(mask(0.0, 1.0, 2.0, 6.0, 3.0, -6.0)))
    assert ReportNumbers.from_dict(numbers.to_dict(), "file") == numbers
    assert numbers.without(["scales"]) == numbers and numbers.without(["gates"]) == replace(numbers, trainings=())
    with pytest.raises(CheckpointError, match=r"file: the format is 2, which a later version wrote"):
        ReportNumbers.from_dict({**numbers.to_dict(), "format": 2}, "file")
    with pytest.raises(CheckpointError, match=r"file: trainings\.0\.label: field required"):
        ReportNumbers.from_dict({"format": 1, "trainings": [{}]}, "file")
