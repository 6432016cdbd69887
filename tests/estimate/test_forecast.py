"""Minutes from the first steps, by a clock that the test moves."""

from __future__ import annotations

import pytest

from optimum_grasprune.estimate import Forecast, Work
from optimum_grasprune.estimate.forecast import in_time
from optimum_grasprune.progress import bar, watched

WORKS = (
    Work("statistics", 10, 1.0),
    Work("gates", 100, 2.0, trains=True),
    Work("candidates", 5, 16.0),
    Work("diagonals", 50, 1.5, trains=True),
)


class Clock:
    """Seconds that only go on when they are told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def run(forecast: Forecast, clock: Clock, label: str, units: int, seconds: float, done: int = 0) -> None:
    with watched(forecast.see), bar(100, label) as stage:
        stage.update(done)
        for _ in range(units):
            clock.now += seconds
            stage.update()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_after_three_steps_of_the_longest_stage_all_is_known(clock: Clock) -> None:
    told: list[str] = []
    forecast = Forecast(told.append, clock)
    forecast.expect(WORKS)
    run(forecast, clock, "statistics", 10, 6.0)
    assert told == []  # shorter than the gates
    run(forecast, clock, "gates", 2, 12.0)
    assert told == []
    clock.now = 60.0
    run(forecast, clock, "gates", 3, 12.0)
    # Of 12 s a step: 97 steps, and 6 s a pass: 80 passes, 75 passes.
    left, before = 97 * 12 + 80 * 6 + 75 * 6, 60 + 3 * 12
    parts = "gates 19 min, candidates 8 min, diagonals 8 min"
    assert told == [f"about {in_time(left + before)} in all, 35 min of it to come: {parts}"]


def test_a_later_training_says_it_anew_and_once(clock: Clock) -> None:
    told: list[str] = []
    forecast = Forecast(told.append, clock)
    forecast.expect(WORKS)
    for _ in range(2):
        run(forecast, clock, "diagonals", 10, 4.0)
    assert told == ["about 3 min in all, 3 min of it to come: diagonals 3 min"]
    run(forecast, clock, "candidates", 5, 60.0)
    assert len(told) == 1


def test_steps_of_an_earlier_run_are_not_to_come(clock: Clock) -> None:
    told: list[str] = []
    forecast = Forecast(told.append, clock)
    forecast.expect(WORKS[:2])
    run(forecast, clock, "gates", 3, 60.0, done=50)
    assert told == ["about 50 min in all, 47 min of it to come: gates 47 min"]


def test_what_is_short_is_worth_no_line(clock: Clock) -> None:
    told: list[str] = []
    forecast = Forecast(told.append, clock)
    forecast.expect(WORKS)
    run(forecast, clock, "gates", 5, 0.01)
    forecast.expect(())
    run(forecast, clock, "gates", 5, 1000.0)
    assert told == []


def test_one_slow_step_is_not_taken_for_all(clock: Clock) -> None:
    told: list[str] = []
    forecast = Forecast(told.append, clock)
    forecast.expect(WORKS[1:2])
    with watched(forecast.see), bar(100, "gates") as stage:
        stage.update(0)
        for seconds in (90.0, 1.0, 1.0):
            clock.now += seconds
            stage.update()
    assert told == ["about 3 min in all, 2 min of it to come: gates 2 min"]


def test_times_in_words() -> None:
    assert [in_time(seconds) for seconds in (4.4, 89, 91, 5000, 6000, 90000)] == [
        *("4 s", "89 s", "2 min", "83 min", "1.7 h", "25.0 h"),
    ]
