from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from optimum_grasprune.recovery import register
from optimum_grasprune.registry import STAGES
from tests.commands.conftest import Outcome
from tests.contracts.test_recovery import Tilt

Cli = Callable[..., Outcome]


def test_a_stage_of_ones_own(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, model_folder: Path, corpus_file: Path, tmp_path: Path
) -> None:
    data = ("--dataset", corpus_file, "--num-samples", 4, "--seq-len", 24, "--method", "wanda_sp")
    outcome = cli("export", "-m", model_folder, *data, "--compensation", "tilt", tmp_path / "pruned")
    assert outcome.code == 2 and "--compensation tilt: input should be 'auto', 'none'" in outcome.error_lines[0]
    assert not (tmp_path / "pruned").exists()

    monkeypatch.setattr(STAGES, "_classes", dict(STAGES._classes))
    register("tilt")(Tilt)
    assert cli("export", "-m", model_folder, *data, "--compensation", "tilt", tmp_path / "pruned").code == 0
    assert cli("export", "-m", model_folder, "--plan", tmp_path / "pruned", tmp_path / "again").code == 0
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("pruned", "again")]
    assert files[0] == files[1]

    monkeypatch.undo()
    outcome = cli("export", "-m", model_folder, "--plan", tmp_path / "pruned", tmp_path / "lost")
    assert outcome.code == 2 and len(outcome.error_lines) == 1
    assert "the plan was made with the stage tilt, which does not exist here; there are " in outcome.error_lines[0]
    assert not (tmp_path / "lost").exists()
