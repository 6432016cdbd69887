from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from optimum_grasprune.errors import CheckpointError
from optimum_grasprune.export.staging import check_output, staged_folder
from optimum_grasprune.writing import slug, write_json


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, OSError(28, "No space left on device")])
def test_interrupted_save_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    expected = CheckpointError if isinstance(error, OSError) else error
    with pytest.raises(expected), staged_folder(tmp_path / "out") as folder:  # type: ignore[arg-type]
        (folder / "config.json").write_text("{}")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_overwriting_replaces_a_checkpoint_as_a_whole(tmp_path: Path) -> None:
    old = tmp_path / "out"
    old.mkdir()
    (old / "config.json").write_text("{}")
    (old / "grasp_config.json").write_text('{"recipe": {}, "base_model": {}}')
    (old / "model-00002-of-00002.safetensors").write_text("stale")
    with pytest.raises(CheckpointError, match="is not empty; use --overwrite"), staged_folder(old):
        pass
    with staged_folder(old, overwrite=True) as folder:
        (folder / "config.json").write_text('{"new": 1}')
    assert [file.name for file in old.iterdir()] == ["config.json"]
    assert list(tmp_path.iterdir()) == [old]


def test_failed_overwrite_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    old = tmp_path / "out"
    old.mkdir()
    (old / "config.json").write_text("old")
    (old / "grasp_config.json").write_text('{"recipe": {}, "base_model": {}}')
    with pytest.raises(RuntimeError), staged_folder(old, overwrite=True):
        raise RuntimeError
    assert (old / "config.json").read_text() == "old"


def test_overwrite_never_takes_a_folder_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match="holds something other than a model"):
        check_output(tmp_path, overwrite=True)


def test_output_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(CheckpointError, match="is a file, not a folder"):
        check_output(tmp_path / "out", overwrite=True)
    with pytest.raises(CheckpointError, match="cannot be written"):
        check_output(tmp_path / "out" / "deeper", overwrite=False)


def test_json_is_readable_and_compact(tmp_path: Path) -> None:
    content = {"a": {"b": [1, 2, 3], "c": []}, "groups": [{"kept": [0, 1]}, {"kept": [2]}]}
    write_json(tmp_path / "x.json", content)
    assert json.loads((tmp_path / "x.json").read_text()) == content
    assert (tmp_path / "x.json").read_text().count("\n") == 10
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]


def test_two_processes_that_write_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one writes while the first is about to put its own in place."""
    replace, file, own = os.replace, tmp_path / "x.json", os.getpid()

    def slow(source: Path, target: Path) -> None:
        if os.getpid() == own:
            with monkeypatch.context() as patch:
                patch.setattr(os, "getpid", lambda: own + 1)
                write_json(file, {"by": "the second"})
            assert json.loads(file.read_text()) == {"by": "the second"}
        replace(source, target)

    monkeypatch.setattr(os, "replace", slow)
    write_json(file, {"by": "the first"})
    assert json.loads(file.read_text()) == {"by": "the first"} and os.listdir(tmp_path) == ["x.json"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_file_that_is_not_written_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fails(source: Path, target: Path) -> None:
        raise error

    (tmp_path / "x.json").write_text("old")
    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(CheckpointError if isinstance(error, OSError) else KeyboardInterrupt):
        write_json(tmp_path / "x.json", {})
    assert (tmp_path / "x.json").read_text() == "old" and os.listdir(tmp_path) == ["x.json"]


def test_slug() -> None:
    assert slug("held out|text: a/b") == "held-out-text-a-b"
