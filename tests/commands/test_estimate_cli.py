"""What `export` says before it starts, and refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from optimum_grasprune.estimate import Machine
from tests.commands.conftest import Outcome

Cli = Callable[..., Outcome]
GIB = 2**30


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Call with what is free."""

    def make(**free: Any) -> None:
        there = Machine(**{"host": 8 * GIB, "output": 8 * GIB, "temporary": 8 * GIB, **free})
        monkeypatch.setattr(Machine, "here", lambda *_, **__: there)

    return make


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: object, **__: object) -> None:
        raise AssertionError("weights are read")

    monkeypatch.setattr("optimum_grasprune.execution.placed.load_model", read)


def test_a_dry_run_prints_needs_and_reads_no_weights(
    cli: Cli, model_folder: Path, tmp_path: Path, no_weights: None, machine: Callable[..., None]
) -> None:
    machine()
    result, output = tmp_path / "result.json", tmp_path / "output"
    outcome = cli("export", "-m", model_folder, "--dry-run", "--json", result, output)
    assert outcome.code == 0 and not outcome.error_lines and not output.exists()
    assert "the CPU's memory" in outcome.out and "8.0 GiB" in outcome.out and "runner: whole" in outcome.out
    found = json.loads(result.read_text())
    assert found["fits"] and found["free"]["host"] == 8 * GIB
    assert found["stages"]["gates"]["weights"] == found["stages"]["loading"]["weights"] > 0


def test_what_cannot_fit_is_refused_before_weights_are_read(
    cli: Cli, model_folder: Path, corpus_file: Path, tmp_path: Path, no_weights: None, machine: Callable[..., None]
) -> None:
    machine(host=2**20)
    output = tmp_path / "output"
    for more in ((), ("--keep-ratio", 0.8, 0.5), ("--dry-run",)):
        outcome = cli("export", "-m", model_folder, "--dataset", corpus_file, *more, output)
        assert outcome.code == 2 and len(outcome.error_lines) == 1, outcome.error_lines
        (line,) = outcome.error_lines
        assert "error: the run needs" in line and "on the CPU's memory for" in line and "1 MiB are free" in line
        assert line.endswith("--ignore-estimate starts it all the same")
        assert not output.exists() and not list(tmp_path.glob(".output*"))


def test_the_estimate_can_be_ignored(
    cli: Cli, model_folder: Path, corpus_file: Path, tmp_path: Path, machine: Callable[..., None]
) -> None:
    machine(host=0)
    options = ("--dataset", corpus_file, "--num-samples", 4, "--seq-len", 24, "--compensation", "none")
    outcome = cli("export", "-m", model_folder, *options, "--ignore-estimate", tmp_path / "output")
    assert outcome.code == 0 and (tmp_path / "output" / "config.json").exists()
    (line,) = outcome.error_lines
    assert line.startswith("needed at most, whole: ") and "0 MiB free" in line


def test_a_plan_needs_no_more_than_the_model(
    cli: Cli, model_folder: Path, corpus_file: Path, tmp_path: Path, machine: Callable[..., None]
) -> None:
    machine()
    options = ("--dataset", corpus_file, "--num-samples", 4, "--seq-len", 24, "--method", "magnitude")
    assert cli("export", "-m", model_folder, *options, tmp_path / "first").code == 0
    result = tmp_path / "result.json"
    plan = ("--plan", tmp_path / "first", "--dry-run", "--json", result)
    assert cli("export", "-m", model_folder, *plan, tmp_path / "second").code == 0
    assert [*json.loads(result.read_text())["stages"]] == ["loading", "writing"]
