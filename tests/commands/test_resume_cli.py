"""Exports that are stopped, by a signal or for good, and started again."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from optimum_grasprune.errors import GraspruneError
from optimum_grasprune.execution import Course, run_state
from optimum_grasprune.ratios import RatioRun
from tests.commands.children import Children
from tests.commands.conftest import Outcome

Cli = Callable[..., Outcome]
SMALL = ("--num-samples", 4, "--seq-len", 24, "--held-out", 2, "--snapshots", 2, "--epochs", 2)


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def interrupts() -> Iterator[None]:
    """Ctrl-C is heard, whatever the tests are run from."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def export(cli: Cli, model_folder: Path, corpus_file: Path) -> Cli:
    def run(*arguments: object) -> Outcome:
        return cli("export", "-m", model_folder, "--dataset", corpus_file, *SMALL, *arguments)

    return run


def signals_at_step(step: int, *numbers: int) -> Callable[..., bool]:
    """`Course.goes_on` in the midst of which signals come at a step."""
    goes_on = Course.goes_on

    def signalled(course: Course, *given: object) -> bool:
        if given[-2] == step:
            for number in numbers:
                os.kill(os.getpid(), number)
        return goes_on(course, *given)  # type: ignore[arg-type]

    return signalled


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_that_then_goes_on(
    number: int, code: int, interrupts: None, export: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert export(tmp_path / "whole").code == 0
    state = tmp_path / ".out.grasprune-state"
    with monkeypatch.context() as patch:
        patch.setattr(Course, "goes_on", signals_at_step(3, number))
        outcome = export(tmp_path / "out")
    line = f"interrupted; the same command goes on from there, --resume no starts anew (state in {state})"
    assert (outcome.code, outcome.error_lines) == (code, [line])
    assert {each.name for each in state.iterdir()} >= {"run.json"} and not (tmp_path / "out").exists()
    steps: list[object] = []
    goes_on = Course.goes_on
    monkeypatch.setattr(Course, "goes_on", lambda *given: steps.append(given[-2]) or goes_on(*given))
    assert export(tmp_path / "out").code == 0
    assert steps[0] == 4 and files(tmp_path / "out") == files(tmp_path / "whole") and not state.exists()


def test_ctrl_c_twice_ends_at_once(
    interrupts: None, export: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Course, "goes_on", signals_at_step(3, signal.SIGINT, signal.SIGINT))
    outcome = export(tmp_path / "out")
    assert (outcome.code, outcome.error_lines) == (130, ["interrupted"]) and not list(tmp_path.iterdir())


def test_starting_anew(interrupts: None, export: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Course, "goes_on", signals_at_step(3, signal.SIGINT))
        assert export(tmp_path / "out").code == 130
    outcome = export("--seed", 1, tmp_path / "out")
    assert outcome.code == 2 and "its seed is 0, not 1; --resume no replaces it" in outcome.error_lines[0]
    assert export("--seed", 1, "--resume", "no", tmp_path / "out").code == 0
    assert [each.name for each in tmp_path.iterdir()] == ["out"]


def test_a_run_that_is_refused_leaves_no_state(export: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_state, "STATE_EVERY", 0.0)
    for options in (("--keep-ratio", 0.001), ("--dataset", "no.txt"), ("--resume", "perhaps"), ("--num-samples", 9**9)):
        outcome = export(*options, tmp_path / "out")
        assert outcome.code == 2 and len(outcome.error_lines) == 1
    assert not list(tmp_path.iterdir())


def test_what_lies_in_the_way_is_said_before_the_model_is_read(
    export: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optimum_grasprune.execution.placed.load_model", lambda *_, **__: pytest.fail("it was read"))
    state = tmp_path / ".out.grasprune-state"
    state.mkdir()
    (state / "notes.txt").write_text("mine")
    outcome = export(tmp_path / "out")
    assert outcome.code == 2 and "holds something other than the state of a run: notes.txt" in outcome.error_lines[0]
    assert files(tmp_path) == {".out.grasprune-state/notes.txt": b"mine"}


def test_an_output_that_is_there_holds_the_state(
    interrupts: None, export: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that another disk is mounted on, whose surroundings may not outlast the machine."""
    (tmp_path / "out").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(Course, "goes_on", signals_at_step(3, signal.SIGINT))
        assert export(tmp_path / "out").code == 130
    assert [each.name for each in (tmp_path / "out").iterdir()] == [".grasprune-state"]
    assert export(tmp_path / "out").code == 0 and export(tmp_path / "whole").code == 0
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["out", "whole"]


def test_several_ratios_go_on_after_those_that_are_written(
    export: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ratios = ("--keep-ratio", 0.8, 0.6)
    assert export(*ratios, tmp_path / "whole").code == 0
    prune = RatioRun.prune

    def fail(run: RatioRun, keep_ratio: float) -> object:
        if keep_ratio == 0.6:
            raise GraspruneError("the cat ate it")
        return prune(run, keep_ratio)

    with monkeypatch.context() as patch:
        patch.setattr(RatioRun, "prune", fail)
        assert export(*ratios, tmp_path / "out").code == 2
    written = (tmp_path / "out" / "keep-0.8" / "config.json").stat().st_mtime_ns
    outcome = export(*ratios, "--json", tmp_path / "result.json", tmp_path / "out")
    assert outcome.code == 0 and outcome.out.count("written before") == 1, outcome.error_lines
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert (tmp_path / "out" / "keep-0.8" / "config.json").stat().st_mtime_ns == written
    assert [each["output"] for each in json.loads((tmp_path / "result.json").read_text())["checkpoints"]] == [
        str(tmp_path / "out" / f"keep-{ratio}") for ratio in ("0.8", "0.6")
    ]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["out", "result.json", "whole"]


# Processes of their own.


def arguments_of(model_folder: Path, corpus_file: Path, output: Path) -> list[str]:
    return list(map(str, ("export", "-m", model_folder, "--dataset", corpus_file, *SMALL, output)))


def test_a_process_that_is_terminated_in_training(
    cli: Cli, model_folder: Path, corpus_file: Path, tmp_path: Path
) -> None:
    def arguments(name: str) -> list[str]:
        shorter = ["--epochs", "15", "--compensation", "refit"]
        return [*arguments_of(model_folder, corpus_file, tmp_path / name), *shorter]

    screen, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    command = [sys.executable, "-m", "optimum.commands.optimum_cli", "grasprune", *arguments("out")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=terminal)
    os.close(terminal)
    shown, sent = b"", False
    with suppress(OSError):  # the other end is closed
        while block := os.read(screen, 4096):
            shown += block
            if not sent and re.search(
                rb"gates:.* [1-9]\d*/60", shown
            ):  # before a step is done there is nothing to keep
                process.send_signal(signal.SIGTERM)
                sent = True
    os.close(screen)
    assert process.wait() == 143, shown.decode()
    assert b"interrupted; the same command goes on from there" in shown.splitlines()[-1]
    assert not (tmp_path / "out").exists() and (tmp_path / ".out.grasprune-state" / "run.json").exists()
    assert cli(*arguments("out")).code == 0 and cli(*arguments("whole")).code == 0
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["out", "whole"]


@pytest.fixture
def run_in_child() -> Iterator[Callable[..., int]]:
    """Run a command to its end, or kill it after some seconds; the exit code."""
    children = Children("from optimum_grasprune.execution import run_state; run_state.STATE_EVERY = 0.0")

    def run(arguments: list[str], seconds: float | None = None) -> int:
        child = children.start(arguments)
        if seconds is not None:
            time.sleep(seconds)
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        return children.wait(child)

    yield run
    children.close()


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments(
    kills: int, run_in_child: Callable[..., int], model_folder: Path, corpus_file: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    arguments = arguments_of(model_folder, corpus_file, output)
    assert run_in_child(arguments_of(model_folder, corpus_file, tmp_path / "first")) == 0
    begun = time.monotonic()
    assert run_in_child(arguments) == 0
    seconds, expected = time.monotonic() - begun, files(output)
    shutil.rmtree(output)
    moments = random.Random(kills)
    for _ in range(kills):
        run_in_child(arguments, moments.uniform(0, seconds))
        if output.exists():
            assert files(output) == expected
            shutil.rmtree(output)
    assert run_in_child(arguments) == 0
    assert files(output) == expected and not (tmp_path / ".out.grasprune-state").exists()
