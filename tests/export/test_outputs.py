"""Whatever OUTPUT is: nothing that was read, and nothing of anyone else's, is missing or changed afterwards."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimum_grasprune.errors import CheckpointError, OptionError
from optimum_grasprune.export.outputs import Source, check_apart, check_result_file, corpora, local, models
from optimum_grasprune.export.staging import (
    CHECKPOINT_FILES,
    UnmovedError,
    check_output,
    is_checkpoint_file,
    staged_folder,
)
from optimum_grasprune.writing import write_file

RECORD = '{"recipe": {}, "base_model": {}}'
NEW = {
    "config.json": "new",
    "grasp_config.json": RECORD,
    "model-00001-of-00002.safetensors": "new",
    "tokenizer.json": "new",
    "additional_chat_templates/tools.jinja": "new",
}
OLD = {
    "config.json": "old",
    "grasp_config.json": RECORD,
    "model.safetensors": "old",
    "tokenizer.model": "old",
    "additional_chat_templates/rag.jinja": "old",
}
FOREIGN = (
    ".git/HEAD",
    "notes.txt",
    "runs/events.out",
    "checkpoint-500/config.json",
    "checkpoint-500/model.safetensors",
)


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def contents(folder: Path) -> dict[str, str]:
    """All files below, links not followed, by their names; links by what they point to."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        elif path.is_file():
            found[name] = path.read_text()
    return found


def attempt(output: Path, sources: list[Source], *, overwrite: bool) -> bool:
    """What `export` does about its output; whether it came to be."""
    try:
        check_apart(output, sources)
        with staged_folder(output, overwrite=overwrite) as folder:
            write(folder, NEW)
    except CheckpointError as error:
        assert "\n" not in str(error)
        return False
    return True


# Places that a model, a corpus, a plan and an output may have, in one another or linked to one another.
PLACES = ("a", "a/b", "a/b/c", "d", "d/e", "link-to-a", "link-to-a/b", "d/link-up", "dangling", ".")


@settings(max_examples=150, deadline=None)
@given(
    model=st.sampled_from(PLACES),
    corpus=st.sampled_from(PLACES),
    plan=st.sampled_from(PLACES),
    output=st.sampled_from((*PLACES, "new", "a/new", "a/b/new", "link-to-a/new", "d/corpus.txt")),
    older=st.sets(st.sampled_from(PLACES)),
    foreign=st.sets(st.tuples(st.sampled_from(PLACES), st.sampled_from(FOREIGN))),
    overwrite=st.booleans(),
    renames=st.sampled_from(("work", "fail")),
)
def test_nothing_that_is_read_or_foreign_changes(
    model: str,
    corpus: str,
    plan: str,
    output: str,
    older: set[str],
    foreign: set[tuple[str, str]],
    overwrite: bool,
    renames: str,
) -> None:
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        root = Path(name)
        (root / "a/b/c").mkdir(parents=True)
        (root / "d/e").mkdir(parents=True)
        (root / "link-to-a").symlink_to("a")
        (root / "d/link-up").symlink_to(root)
        (root / "dangling").symlink_to("nowhere")
        for place in older - {"dangling"}:
            write(root / place, OLD)
        for place, file in foreign:
            if place != "dangling":
                write(root / place, {file: f"foreign {place}"})
        there = [root / place for place in (model, corpus, plan) if place != "dangling"]
        if model != "dangling":
            write(root / model, {"config.json": "dense", "model.safetensors": "dense"})
        if corpus != "dangling":
            write(root / corpus, {"corpus.txt": "text"})
        if plan != "dangling":
            write(root / plan, {"grasp_config.json": RECORD})
        sources = [
            *models("the model", str(root / model)),
            *corpora("the corpus", str(root / corpus / "corpus.txt")),
            *local("the plan", root / plan / "grasp_config.json"),
        ]
        assert len(sources) == len(there)
        before = contents(root)
        if renames == "fail":
            patch.setattr(os, "replace", _failing_after(3))
        done = attempt(root / output, sources, overwrite=overwrite)
        after = contents(root)
        target = Path(os.path.realpath(root / output)).relative_to(os.path.realpath(root)).as_posix()
        mine = "" if target == "." else f"{target}/"
        changed = {file for file in before if after.get(file) != before[file]}
        for file in changed:
            assert done and overwrite and file.startswith(mine) and is_checkpoint_file(file.removeprefix(mine)), file
        if done:
            assert {file: after[mine + file] for file in NEW} == NEW
            stale = OLD.keys() - NEW.keys()
            assert not {mine + file for file in stale} & after.keys()
        elif renames == "work":
            assert after == before


def _failing_after(count: int) -> object:
    real = os.replace
    calls = iter(range(10_000))

    def replace(source: Path, destination: Path) -> None:
        if next(calls) == count:
            raise OSError(16, "Device or resource busy", str(source), None, str(destination))
        real(source, destination)

    return replace


@pytest.fixture
def old(tmp_path: Path) -> Path:
    folder = tmp_path / "old"
    write(folder, OLD)
    return folder


def test_overwriting_takes_the_old_checkpoint_and_nothing_else(old: Path, tmp_path: Path) -> None:
    write(old, dict.fromkeys((*FOREIGN, "my-tokenizer.py", "model-backup.safetensors"), "mine"))
    assert attempt(old, [], overwrite=True)
    others = {name: text for name, text in contents(old).items() if text == "mine"}
    assert set(others) == {*FOREIGN, "my-tokenizer.py", "model-backup.safetensors"}
    assert {name: text for name, text in contents(old).items() if name not in others} == NEW
    assert [entry.name for entry in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize("fails_at", range(10))
def test_a_failed_move_puts_everything_back_and_keeps_the_work(
    old: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    before = contents(old)
    monkeypatch.setattr(os, "replace", _failing_after(fails_at))
    message = r"cannot be written: Device or resource busy: .*; the whole"
    with pytest.raises(UnmovedError, match=message) as failure, staged_folder(old, overwrite=True) as folder:
        write(folder, NEW)
    assert f"the whole checkpoint is in {folder}" in str(failure.value)
    assert contents(folder) == NEW
    assert {name: text for name, text in contents(old).items() if not name.startswith(folder.name)} == before


def test_an_interrupt_while_moving_puts_everything_back(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(old)
    real = os.replace

    def interrupted(source: Path, destination: Path) -> None:
        if Path(destination).name == "config.json" and Path(destination).parent == old and not stopped:
            stopped.append(True)
            raise KeyboardInterrupt
        real(source, destination)

    stopped: list[bool] = []
    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt), staged_folder(old, overwrite=True) as folder:
        write(folder, NEW)
    assert stopped and contents(old) == before


def test_what_came_into_the_way_meanwhile_stays(old: Path, tmp_path: Path) -> None:
    another = "holds another file of this name: tool.py"
    with pytest.raises(UnmovedError, match=another), staged_folder(old, overwrite=True) as folder:
        write(folder, {**NEW, "tool.py": "new"})
        (old / "tool.py").write_text("mine")
    assert (old / "tool.py").read_text() == "mine" and (old / "config.json").read_text() == "old"
    with pytest.raises(UnmovedError, match="the whole checkpoint is in"), staged_folder(tmp_path / "new") as folder:
        write(folder, NEW)
        write(tmp_path / "new", {"config.json": "of another run"})
    assert contents(tmp_path / "new") == {"config.json": "of another run"}
    assert contents(folder) == NEW


def test_a_link_to_a_folder_stays_one(tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir()
    (tmp_path / "out").symlink_to("volume")
    assert attempt(tmp_path / "out", [], overwrite=False)
    assert (tmp_path / "out").is_symlink() and contents(tmp_path / "volume") == NEW


@pytest.mark.parametrize("place", ["dangling", "dangling/deeper"])
def test_a_link_to_nothing_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(CheckpointError, match="dangling is a link to nothing"):
        check_output(tmp_path / place, overwrite=True)
    assert not (tmp_path / "nowhere").exists()


def test_a_name_that_no_file_system_takes_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="File name too long"):
        check_output(tmp_path / "deeper" / ("x" * 300), overwrite=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["config.json", "README.md", "model-00001-of-00002.safetensors"])
def test_a_folder_by_the_name_of_a_file_is_named(old: Path, name: str) -> None:
    (old / name).unlink(missing_ok=True)
    write(old, {f"{name}/inside": "mine"})
    with pytest.raises(CheckpointError, match=f"cannot be overwritten: {name} in it is no file"):
        check_output(old, overwrite=True)


@pytest.mark.parametrize("record", [None, "{", "[]", '{"_name_or_path": "x"}'])
def test_only_checkpoints_of_ours_are_overwritten(old: Path, record: str | None) -> None:
    (old / "grasp_config.json").unlink()
    if record is not None:
        (old / "grasp_config.json").write_text(record)
    with pytest.raises(CheckpointError, match="other than a model that was pruned: additional_chat_templates, "):
        check_output(old, overwrite=True)


def test_the_folder_that_a_file_system_makes_is_no_content(tmp_path: Path) -> None:
    write(tmp_path, {"lost+found/#1234": "mine"})
    assert attempt(tmp_path, [], overwrite=False)
    assert contents(tmp_path) == {**NEW, "lost+found/#1234": "mine"}


def test_a_file_system_without_permissions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", refuse)
    assert attempt(tmp_path / "out", [], overwrite=False)
    assert contents(tmp_path / "out") == NEW


def test_folders_on_the_way_vanish_with_a_failure(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), staged_folder(tmp_path / "some" / "where" / "out"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


@contextlib.contextmanager
def mounted(source: Path | None, place: Path, *options: str) -> Iterator[None]:
    """A folder, or an empty file system without one, mounted in another place; skips where that is not allowed."""
    place.mkdir(exist_ok=True)
    what = ["--bind", str(source)] if source else ["-t", "tmpfs", "none"]
    try:
        done = subprocess.run(["mount", *what, *options, str(place)], capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("this system has no mount")
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_mount_point(tmp_path: Path) -> None:
    with mounted(None, tmp_path / "volume"):
        assert attempt(tmp_path / "volume", [], overwrite=False)
        assert contents(tmp_path / "volume") == NEW
        (tmp_path / "volume" / "notes.txt").write_text("mine")
        assert attempt(tmp_path / "volume", [], overwrite=True)
        assert contents(tmp_path / "volume") == {**NEW, "notes.txt": "mine"}


def test_a_mount_point_that_cannot_be_written(tmp_path: Path) -> None:
    with mounted(None, tmp_path / "volume", "-o", "ro"), pytest.raises(CheckpointError, match="Read-only file system"):
        check_output(tmp_path / "volume" / "out", overwrite=False)


def test_a_folder_mounted_twice_is_known_by_both_names(old: Path, tmp_path: Path) -> None:
    with mounted(old, tmp_path / "view"):
        for output in (tmp_path / "view", tmp_path / "view" / "inside"):
            with pytest.raises(CheckpointError, match=r"is the model|lies inside the model"):
                check_apart(output, models("the model", str(old)))


def test_files_that_are_only_linked_into_a_model_folder(old: Path, tmp_path: Path) -> None:
    (tmp_path / "view").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "view" / name).symlink_to(old / name)
    with pytest.raises(CheckpointError, match=f"{old} contains the model"):
        check_apart(old, models("the model", str(tmp_path / "view")))


def test_corpora_are_found_in_every_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, {"a.txt": "", "b.txt": "", "c,d.txt": "", "builtin": "", "rows/part.jsonl": ""})
    found = corpora("", "a.txt, b.txt", "c,d.txt", "name=rows[90%:]", "builtin", None, "wikitext2", "x=c4[test]")
    assert [source.path.name for source in found] == ["a.txt", "b.txt", "c,d.txt", "rows"]


def test_result_files(old: Path, tmp_path: Path) -> None:
    write(tmp_path, {"corpus.txt": "text", "earlier.json": "{}"})
    (tmp_path / "link.json").symlink_to("corpus.txt")
    sources = [*models("the model", str(old)), *local("the corpus", tmp_path / "corpus.txt")]
    for file, message in (
        (tmp_path / "corpus.txt", "is the corpus"),
        (tmp_path / "link.json", "is the corpus"),
        (old / "config.json", "lies inside the model"),
        (tmp_path / "out", "is part of the output"),
        (tmp_path / "missing" / "x.json", "cannot be written: no such folder"),
        (old, "cannot be written"),
    ):
        with pytest.raises(OptionError, match=message):
            check_result_file(str(file), sources, str(tmp_path / "out"))
    for file in (tmp_path / "earlier.json", tmp_path / "new.json", old / "results.json", Path("/dev/null")):
        check_result_file(str(file), sources, str(tmp_path / "out"))
    (tmp_path / "out").mkdir()
    with pytest.raises(OptionError, match="is part of the output"):
        check_result_file(str(tmp_path / "out" / "config.json"), sources, str(tmp_path / "out"))


def test_a_result_is_written_through_a_link_and_into_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir()
    (tmp_path / "result.json").symlink_to("volume/result.json")
    write_file(tmp_path / "result.json", b"{}")
    assert (tmp_path / "result.json").is_symlink() and (tmp_path / "volume" / "result.json").read_bytes() == b"{}"
    reading, writing = os.pipe()
    write_file(Path(f"/dev/fd/{writing}"), b"{}")
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        assert pipe.read() == b"{}"


def test_every_file_of_a_checkpoint_is_known(model_folder: Path) -> None:
    assert all(is_checkpoint_file(file.name) for file in model_folder.iterdir())
    assert not any(is_checkpoint_file(name) for name in (*FOREIGN, "train.py", "optimizer.pt", "models.txt"))
    assert len(set(CHECKPOINT_FILES)) == len(CHECKPOINT_FILES)
