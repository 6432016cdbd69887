from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from optimum_grasprune.execution import Course, run_state
from tests.commands.conftest import Outcome

Cli = Callable[..., Outcome]


@pytest.fixture
def recover(cli: Cli, model_folder: Path, corpus_file: Path) -> Cli:
    def run(*arguments: object) -> Outcome:
        return cli(
            *("export", "-m", model_folder, "--dataset", corpus_file, "--num-samples", 4, "--seq-len", 24),
            *("--method", "wanda_sp", "--recover-tokens", 480, "--recover-watch", f"{__file__}[:90%]", *arguments),
        )

    return run


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("name", ["lora", "distill"])
def test_from_the_command_line(recover: Cli, cli: Cli, model_folder: Path, name: str, tmp_path: Path) -> None:
    outcome = recover("--recover", name, "--json", tmp_path / "result.json", tmp_path / "pruned")
    assert outcome.code == 0 and not outcome.error_lines, outcome.error_lines
    recovery = json.loads((tmp_path / "result.json").read_text())["recovery"]
    assert recovery["stage"] == name and recovery["tokens"] == 480 and recovery["watched"]["split"] == "[:90%]"
    assert recovery["before"]["held_out"] is None and recovery["after"]["watched"] <= recovery["before"]["watched"]
    assert recover(tmp_path / "bare").code == 0
    record = json.loads((tmp_path / "bare" / "grasp_config.json").read_text())
    assert "recovery" not in record and "then trained" not in (tmp_path / "bare" / "README.md").read_text()
    again = cli("export", "-m", model_folder, "--plan", tmp_path / "pruned", tmp_path / "again")
    assert again.code == 0 and weights(tmp_path / "again") == weights(tmp_path / "pruned") != weights(tmp_path / "bare")


def test_the_same_command_goes_on(recover: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_state, "STATE_EVERY", 0.0)
    state = tmp_path / ".pruned.grasprune-state"
    assert recover("--recover", "lora", tmp_path / "whole").code == 0
    goes_on = Course.goes_on

    def stop(course: Course, *arguments: object) -> bool:
        if arguments[-2] == 8:
            raise KeyboardInterrupt
        return goes_on(course, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Course, "goes_on", stop)
        assert recover("--recover", "lora", tmp_path / "pruned").code == 130
    assert not (tmp_path / "pruned").exists() and "run.json" in {each.name for each in state.iterdir()}
    outcome = recover("--recover", "lora", "--seed", 1, tmp_path / "pruned")
    assert outcome.code == 2 and len(outcome.error_lines) == 1
    assert "holds the state of another run: its seed is 0, not 1; --resume no replaces it" in outcome.error_lines[0]
    steps: list[object] = []
    monkeypatch.setattr(Course, "goes_on", lambda *all: steps.append(all[-2]) or goes_on(*all))
    assert recover("--recover", "lora", tmp_path / "pruned").code == 0 and steps[0] == 8
    assert weights(tmp_path / "pruned") == weights(tmp_path / "whole")
    records = [json.loads((tmp_path / name / "grasp_config.json").read_text()) for name in ("pruned", "whole")]
    assert records[0]["recovery"].pop("minutes") >= 0 and records[1]["recovery"].pop("minutes") >= 0
    assert records[0] == records[1] and not state.exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--recover", "all"), "--recover all: input should be 'none', 'lora' or 'distill'"),
        (("--recover", "lora", "--recover-rank", 0), "--recover-rank 0: input should be greater than or equal to 1"),
        (("--recover", "lora", "--recover-tokens", 10**6), "--recover-tokens 1000000: the calibration corpus"),
        (("--recover", "lora", "--recover-watch", "no.txt"), "--recover-watch no.txt: no such file"),
        (("--recover", "lora", "--recover-watch", "{corpus}"), "is the text that is trained on: "),
        (("--recover", "lora", "--recover-watch", "{corpus}[10%:]"), "is the text that is trained on: "),
        (("--recover", "lora", "--recover-watch", f"{__file__}[:5]"), "has less than one sequence of 24 tokens"),
        (("--recover", "lora", "--resume", "maybe"), "--resume maybe: input should be 'yes' or 'no'"),
        (
            ("--recover", "distill", "--method", "statistical", "--pattern", "2:4"),
            "--recover distill: pattern 2:4 cuts single weights, which training would bring back",
        ),
    ],
)
def test_refusals(
    recover: Cli, arguments: tuple[object, ...], line: str, model_folder: Path, corpus_file: Path, tmp_path: Path
) -> None:
    places = {"output": tmp_path / "pruned", "corpus": corpus_file, "model": model_folder}
    outcome = recover(*(str(each).format(**places) for each in arguments), tmp_path / "pruned")
    assert outcome.code == 2 and len(outcome.error_lines) == 1 and line in outcome.error_lines[0]
    assert not list(tmp_path.iterdir())


def test_without_peft(recover: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optimum_grasprune.recovery.lora.find_spec", lambda _: None)
    outcome = recover("--recover", "lora", tmp_path / "pruned")
    assert outcome.code == 2 and outcome.error_lines == [
        'optimum-cli grasprune export: error: --recover lora: needs peft: pip install "optimum-grasprune[recover]"'
    ]
    assert recover("--recover", "distill", tmp_path / "pruned").code == 0
