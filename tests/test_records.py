"""Records of other versions: what they say is replayed as it was meant."""

from __future__ import annotations

from typing import Any

from optimum_grasprune import GRASPConfig
from optimum_grasprune.record import RECORD_FORMAT, in_todays_words, mixed_as_one_text


def record(**values: Any) -> dict[str, Any]:
    return {"format": 1, "recipe": {"method": "fasp"}, "calibration": {"source": "a.txt"}, **values}


def test_version_0_1_had_no_bos_and_one_kind_of_least_squares() -> None:
    recipe = GRASPConfig.from_dict(in_todays_words(record())["recipe"])
    assert (recipe.bos, recipe.least_squares, recipe.method) == (False, "robust", "fasp")


def test_records_of_today_stay_as_they_are() -> None:
    today = record(format=RECORD_FORMAT)
    assert in_todays_words(today) == today


def test_a_mixture_of_version_0_1_is_known() -> None:
    assert mixed_as_one_text(record(calibration={"source": "a.txt,b.txt"}))
    assert not mixed_as_one_text(record(calibration={"source": "a.txt,b.txt"}, format=RECORD_FORMAT))
    assert not mixed_as_one_text(record()) and not mixed_as_one_text(record(calibration=None))
