from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable, Iterator

import pytest
from huggingface_hub import constants
from transformers.utils import logging

from optimum_grasprune import progress
from optimum_grasprune.progress import bar, restart, tidy, track, without_library_bars


class Clock:
    """Time that passes only when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Stream(io.StringIO):
    """Standard error, maybe of a terminal."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal

    @property
    def bars(self) -> list[str]:
        """Names of the bars that were drawn, each once, in order."""
        return list(dict.fromkeys(re.findall(r"([a-z]+): +\d+%\|", self.getvalue())))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "monotonic", clock)
    restart()
    return clock


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Stream]:
    def replaced(*, terminal: bool) -> Stream:
        stream = Stream(terminal)
        monkeypatch.setattr(sys, "stderr", stream)
        return stream

    return replaced


@pytest.fixture(autouse=True)
def nothing_left_open() -> Iterator[None]:
    yield
    assert not progress._open


def test_on_a_terminal_only_the_outermost_stage_is_drawn_and_says_what_goes_on_inside(
    clock: Clock, stream: Callable[..., Stream]
) -> None:
    screen = stream(terminal=True)
    with bar(3, "widths", "trial") as outer:
        for _ in range(3):
            for _ in track(range(5), "loss", "window"):
                clock.now += 1
            outer.status("loss 3.1250")
            outer.update()
    assert screen.bars == ["widths"]
    assert "loss 4/5" in screen.getvalue()
    last = screen.getvalue().split("\r")[-1]
    assert "3/3" in last and "loss 3.1250" in last and "loss 4/5" not in last
    assert last.endswith("\n") and screen.getvalue().count("\n") == 1


def test_stages_after_each_other_have_a_bar_each(stream: Callable[..., Stream]) -> None:
    screen = stream(terminal=True)
    assert list(track("abc", "gates", "step")) == ["a", "b", "c"]
    assert list(track(iter("ab"), "scales", "step", total=2)) == ["a", "b"]
    assert list(track(iter("ab"), "reading", "document")) == ["a", "b"]
    assert list(track((), "nothing", "step")) == []
    assert screen.bars == ["gates", "scales"]
    assert "nothing" not in screen.getvalue()
    assert "reading: 2 document" in screen.getvalue()  # nobody knows the total
    assert screen.getvalue().count("\n") == 3


def test_an_error_starts_on_a_line_of_its_own(stream: Callable[..., Stream]) -> None:
    screen = stream(terminal=True)
    held: list[BaseException] = []  # a traceback that is held keeps variables alive, as a notebook does
    for error in (ValueError, KeyboardInterrupt):
        try:
            with tidy():
                steps, windows = track(range(9), "gates", "step"), track(range(9), "loss", "window")
                for _ in steps:
                    for _ in windows:
                        raise error
        except error as caught:
            held.append(caught)
        assert screen.getvalue().endswith("\n")
        assert not progress._open


def test_what_was_open_outside_stays_open(stream: Callable[..., Stream]) -> None:
    stream(terminal=True)
    with bar(2, "cells", "cell") as outer:
        with pytest.raises(ValueError), tidy():
            next(track(range(9), "gates", "step"))
            inner = track(range(9), "gates", "step")
            next(inner)
            raise ValueError
        assert progress._open == [outer]
        assert list(inner) == list(range(1, 9))  # goes on, and is shown no more
        assert progress._open == [outer]


def test_a_log_gets_a_line_every_half_minute(clock: Clock, stream: Callable[..., Stream]) -> None:
    log = stream(terminal=False)
    with bar(1000, "gates", "step") as stage:
        for step in range(1000):
            clock.now += 0.1
            stage.status(f"loss {step}")
            stage.update()
    lines = log.getvalue().splitlines()
    assert len(lines) == 4 and "\r" not in log.getvalue()  # at 30, 60 and 90 s, and the end
    assert [line.split("[")[0].split()[:3] for line in lines][-1] == ["gates:", "100%", "1000/1000"]
    assert all("loss" in line and line.startswith("gates:") for line in lines)
    assert "00:30<" in lines[0]


def test_a_log_of_a_short_run_is_empty(clock: Clock, stream: Callable[..., Stream]) -> None:
    log = stream(terminal=False)
    for _ in range(100):
        for _ in track(range(10), "loss", "window"):
            clock.now += 0.02
    assert log.getvalue() == ""


def test_many_short_stages_leave_a_line_now_and_then(clock: Clock, stream: Callable[..., Stream]) -> None:
    log = stream(terminal=False)
    for _ in range(10):
        for _ in track(range(10), "loss", "window"):
            clock.now += 1
    assert len(log.getvalue().splitlines()) == 3
    clock.now += 3600  # nothing ran, so nothing is to be said about it
    list(track(range(10), "loss", "window"))
    assert len(log.getvalue().splitlines()) == 3


def test_a_log_tells_what_goes_on_inside_a_stage(clock: Clock, stream: Callable[..., Stream]) -> None:
    log = stream(terminal=False)
    with bar(4, "candidates", "mask") as stage:
        for _ in track(range(32), "loss", "window"):
            clock.now += 1
        stage.update()
    (line, last) = log.getvalue().splitlines()
    assert line.startswith("candidates:") and "0/4" in line and "loss 30/32" in line
    assert "1/4" in last and "loss" not in last


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("by", ["TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS"])
def test_the_usual_switches_silence_it(
    terminal: bool, by: str, clock: Clock, stream: Callable[..., Stream], monkeypatch: pytest.MonkeyPatch
) -> None:
    if by == "TQDM_DISABLE":
        monkeypatch.setenv(by, "1")
    else:
        monkeypatch.setattr(constants, by, True)
    output = stream(terminal=terminal)
    for _ in track(range(100), "gates", "step"):
        clock.now += 1
    assert output.getvalue() == ""


def test_a_switch_that_is_off_silences_nothing(stream: Callable[..., Stream], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TQDM_DISABLE", "0")
    screen = stream(terminal=True)
    list(track(range(3), "gates", "step"))
    assert screen.bars == ["gates"]


def test_transformers_draws_no_bar_over_ours(stream: Callable[..., Stream], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "_tqdm_hook", None)  # a command that was run in this process has set one
    screen = stream(terminal=True)
    with without_library_bars():
        assert list(logging.tqdm(range(3), desc="Loading weights")) == [0, 1, 2]
    assert screen.getvalue() == ""
    list(logging.tqdm(range(3), desc="Loading weights"))
    assert "Loading weights" in screen.getvalue()
