"""Multipliers that are trained with the choice of units, through the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from optimum_grasprune.export.checkpoint import read_plan
from tests.commands.conftest import Outcome

Cli = Callable[..., Outcome]
SMALL = ("--num-samples=4", "--seq-len=24", "--learning-rate=0.2")


@pytest.mark.parametrize("flags", [("--multipliers=joint", "--start=zero"), ("--method=ddp", "--final-softness=0.1")])
def test_they_are_exported_in_the_plan_and_replayed(
    flags: tuple[str, ...], cli: Cli, model_folder: Path, corpus_file: Path, tmp_path: Path
) -> None:
    given = ("export", "-m", model_folder)
    outcome = cli(*given, *flags, "--dataset", corpus_file, *SMALL, "--compensation=none", tmp_path / "out")
    assert outcome.code == 0, outcome.error_lines
    plan, record = read_plan(tmp_path / "out")
    assert record is not None and record.compensation == () and all(group.multipliers for group in plan.groups)
    outcome = cli(*given, "--plan", tmp_path / "out", tmp_path / "again")
    assert outcome.code == 0, outcome.error_lines
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "again"))
    assert first == second


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--multipliers=apart",), "--multipliers apart: input should be 'none' or 'joint'"),
        (("--multiplier-learning-rate=0",), "--multiplier-learning-rate 0: input should be greater than 0"),
        (("--method=ddp", "--final-softness=0.6"), "--final-softness 0.6: input should be less than or equal to 0.5"),
        (("--method=ddp", "--allocation=uniform"), "--allocation uniform: ddp supports only global"),
    ],
)
def test_what_makes_no_sense_is_refused(
    flags: tuple[str, ...], message: str, cli: Cli, model_folder: Path, tmp_path: Path
) -> None:
    outcome = cli("export", "-m", model_folder, *flags, tmp_path / "out")
    assert outcome.code == 2 and message in outcome.error_lines[-1] and not (tmp_path / "out").exists()


def test_a_comparison_reuses_what_was_chosen_for_other_compensations(
    cli: Cli, model_folder: Path, corpus_file: Path, tmp_path: Path
) -> None:
    methods = ["quick+none", "quick+none@multipliers=joint", "quick+scales@multipliers=joint", "ddp", "ddp+refit"]
    evaluation = ("--eval-seq-len=32", "--eval-samples=4", "--evaluate", f"end={corpus_file}[90%:]")
    common = ("--keep-ratios=0.5", "--dataset", corpus_file, "--held-out=2", *SMALL, *evaluation, "--no-plot")
    outcome = cli("compare", "-m", model_folder, "--methods", *methods, *common, tmp_path / "out")
    assert outcome.code == 0, outcome.error_lines
    cells = json.loads((tmp_path / "out" / "comparison.json").read_text())["cells"]
    assert [cell["choice_reused"] for cell in cells] == [False, False, True, False, True]
