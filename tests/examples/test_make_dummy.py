"""The example as a user runs it, in this process."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from optimum_grasprune import load_pruned_model
from optimum_grasprune.export.checkpoint import read_plan
from optimum_grasprune.units import FFN
from tests.conftest import script

Make = Callable[..., int]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Make:
    """Call with the command line's arguments; the exit code."""
    module = script("examples/make_dummy.py")

    def run(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["make_dummy.py", *map(str, arguments)])
        try:
            module.main()
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    return run


def test_widths_of_another_models_plan_and_their_uniform_control(make: Make, tmp_path: Path) -> None:
    code = make("--shape", "smollm2-135m", "--keep-ratio", 0.5, "--config-only", tmp_path / "small")
    assert code == 0
    options = ("--shape", "tiny", "--keep-ratio", 0.6, "--plan", tmp_path / "small", "--ffn-multiple-of", 8)
    for name, more in (("pruned", ()), ("control", ("--uniform",))):
        assert make(*options, *more, tmp_path / name) == 0
        load_pruned_model(tmp_path / name)
    record = json.loads((tmp_path / "pruned" / "grasp_config.json").read_text())
    assert 0.58 < record["budget"]["kept"]["prunable"] <= 0.6
    widths = [len(group.kept) for group in read_plan(tmp_path / "pruned")[0].groups if group.kind == FFN]
    control = [len(group.kept) for group in read_plan(tmp_path / "control")[0].groups if group.kind == FFN]
    assert len(set(widths)) > 2 and all(width % 8 == 0 for width in widths)
    assert len(set(control)) == 1


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--shape", "llama-9"), "--shape llama-9: no such shape; there are tiny, "),
        (("--shape", "tiny", "--keep-ratio", "0"), "--keep-ratio 0: input should be greater than 0"),
        (("--shape", "tiny", "--uniform"), "--uniform True: is of use only with --keep-ratio"),
        (("--shape", "tiny", "--keep-ratio", "0.5", "--plan", "nowhere"), "nowhere holds no pruning plan"),
        (("--shape", "tiny", "--keep-ratio", "0.001"), "the nearest feasible value is"),
    ],
)
def test_bad_input_is_one_line(
    make: Make, capsys: pytest.CaptureFixture[str], tmp_path: Path, options: tuple[str, ...], line: str
) -> None:
    assert make(*options, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.startswith("make_dummy: error: ") and line in error
    assert len(error.splitlines()) == 1 and not (tmp_path / "out").exists()
