from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optimum_grasprune import GRASPConfig
from optimum_grasprune.execution import CheckUp, Course, Trace, Traced, Training, UnitMultipliers, WholeModel
from optimum_grasprune.execution.trace import KEEP_RATIO, LOSS, means, point_bounds
from tests.conftest import make_model
from tests.recovery.trained_scales import train_scales

TOKENS = torch.randint(258, (5, 12), generator=torch.Generator().manual_seed(0))
TRAINING = Training(2, 2, 0, 0.05, "constant", gradient_checkpointing=False, label="scales")


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values)


def test_points_by_hand() -> None:
    assert point_bounds(3, 500) == [0, 1, 2, 3]
    assert point_bounds(5, 2) == [0, 2, 5]
    values = tensor(1.0, 2.0, math.nan, 4.0, math.nan)
    assert means(values, [0, 2, 4, 5]) == (1.5, 4.0, None)
    assert means(tensor(1.23456789), [0, 1]) == (1.23457,)


@given(st.integers(1, 10_000), st.integers(1, 600))
def test_points_are_even_and_hold_every_step_once(count: int, most: int) -> None:
    bounds = point_bounds(count, most)
    sizes = [last - first for first, last in pairwise(bounds)]
    assert bounds[0] == 0 and bounds[-1] == count and len(sizes) == min(count, most)
    assert max(sizes) - min(sizes) <= 1 and min(sizes) >= 1


def test_it_holds_every_step_however_many() -> None:
    trace = Trace()
    for step in range(600):
        trace.note(torch.tensor(float(step), dtype=torch.float64), {"kept.ffn": torch.tensor(step / 2)})
    again = Trace()
    again.take_up(trace.tensors())
    again.note(torch.tensor(600.0), {"kept.ffn": torch.tensor(300.0)})
    assert torch.equal(again.tensors()["kept.ffn"], torch.arange(601) / 2)
    assert torch.equal(again.tensors()[LOSS], torch.arange(601.0))


def test_curves_are_of_the_steps_at_a_ratio() -> None:
    values = {
        LOSS: tensor(4.0, 3.0, 2.0, 1.0),
        "changed.kv": tensor(math.nan, math.nan, 0.5, 0.25),
        KEEP_RATIO: tensor(0.8, 0.6, 0.8, 0.6),
    }
    traced = Traced("gates", values, (CheckUp(step=4, losses={"held_out": 1.5}),), 4)
    curves = traced.curves(0.6)
    assert curves is not None and (curves.label, curves.steps, curves.ends) == ("gates", 2, (2, 4))
    assert curves.loss == (3.0, 1.0) and curves.readings == {"changed.kv": (None, 0.25)}
    assert curves.of_kinds("changed.") == {"kv": (None, 0.25)} and curves.of_kinds("kept.") == {}
    assert curves.check_ups[0].losses == {"held_out": 1.5} and curves.kept_step == 4
    assert traced.curves(0.7) is None and Traced("scales", {}).curves(0.6) is None
    known = Traced("scales", {LOSS: values[LOSS]}).at(0.6)
    assert known.curves(0.7) is None and (curves := known.curves(0.6)) is not None and curves.steps == len(values[LOSS])
    every = Traced("scales", {LOSS: values[LOSS]}).curves(0.6)
    assert every is not None and every.loss == (4.0, 3.0, 2.0, 1.0)


def test_a_long_training_is_thinned() -> None:
    curves = Traced("gates", {LOSS: torch.arange(2048.0)}).curves(0.5)
    assert curves is not None and len(curves.loss) == len(curves.ends) == 500 and curves.ends[-1] == 2048
    assert curves.loss[0] == 1.5 and curves.ends[0] == 4


def test_a_trace_has_the_losses_of_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    loss = WholeModel._loss

    def noted(self: WholeModel, *given: Any) -> torch.Tensor:
        value = loss(self, *given)
        seen.append(value.item())
        return value

    monkeypatch.setattr(WholeModel, "_loss", noted)
    runner = WholeModel(make_model())
    units = torch.ones(runner.inventory.num_units)
    runner.learn(UnitMultipliers(units, lambda values_U, _: values_U), TOKENS, TRAINING)
    (traced,) = runner.trainings
    assert traced.label == "scales" and traced.values[LOSS].tolist() == seen and len(seen) == 6
    assert traced.check_ups == () and traced.kept_step is None


def test_what_is_watched_is_in_it() -> None:
    runner = WholeModel(make_model())
    course = Course({"watched": TOKENS[:1]})
    units = torch.ones(runner.inventory.num_units)
    runner.learn(UnitMultipliers(units, lambda values_U, _: values_U), TOKENS, TRAINING, course=course)
    (traced,) = runner.trainings
    assert [each.step for each in traced.check_ups] == [0, 1, 2, 3, 4, 5, 6]
    assert traced.kept_step == course.best_step


def test_models_beside_each_other_have_one_list() -> None:
    runner = WholeModel(make_model())
    config = GRASPConfig(scale_epochs=1, batch_size=1)
    train_scales(runner.beside(make_model()), TOKENS, config)
    train_scales(runner, TOKENS, config)
    assert [each.label for each in runner.trainings] == ["scales", "scales"]
