"""What a run keeps of its work, and how it takes it up."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optimum_grasprune.errors import CheckpointError, GraspruneWarning
from optimum_grasprune.execution import RunState
from optimum_grasprune.execution.run_state import Content, Piece
from optimum_grasprune.execution.state_file import Standing

OF = {"seed": 0, "keep_ratios": [0.5]}


def nothing() -> dict[str, object]:
    pytest.fail("the model was hashed")


def begun(folder: Path, of: dict[str, object] = OF, *, every: float = 0.0, resume: bool = True) -> RunState:
    state = RunState(folder, every=every, resume=resume)
    state.begin(of, lambda: {"model": "abc"})  # type: ignore[arg-type]
    return state


def content(piece: Piece, step: int) -> Content:
    return Standing(of=piece.of, step=step), {"sum": torch.tensor(step)}


def unknown() -> float:
    pytest.fail("it was worked out again")


def test_a_number_is_worked_out_once(tmp_path: Path) -> None:
    state = begun(tmp_path / "state")
    assert [state.number("loss", "a", lambda: 0.1), state.number("loss", "a", lambda: 0.2)] == [0.1, 0.2]
    again = begun(tmp_path / "state")
    assert [again.number("loss", "a", unknown), again.number("loss", "a", unknown)] == [0.1, 0.2]
    assert again.number("loss", "a", lambda: 0.3) == 0.3
    index = json.loads((tmp_path / "state" / "run.json").read_text())
    assert index["of"] == {**OF, "model": "abc"} and [each["value"] for each in index["results"]] == [0.1, 0.2, 0.3]


def test_a_piece_goes_on_after_its_last_step(tmp_path: Path) -> None:
    piece = begun(tmp_path / "state").piece("gates", "a")
    assert piece.kept() is None and not piece.finished
    piece.step_done(lambda: content(piece, 1))
    piece.step_done(lambda: content(piece, 2))
    kept = begun(tmp_path / "state").piece("gates", "a").kept()
    assert kept is not None and (kept[0].step, int(kept[1]["sum"])) == (2, 2)
    piece.finish(*content(piece, 3))
    again = begun(tmp_path / "state").piece("gates", "a")
    assert again.finished and (kept := again.kept()) is not None and kept[0].step == 3


def test_what_was_kept_within_a_piece_goes_with_it(tmp_path: Path) -> None:
    state = begun(tmp_path / "state")
    outer, inner = state.piece("diagonals", "a"), state.piece("teacher", "b")
    inner.finish(*content(inner, 9))
    again = begun(tmp_path / "state")
    outer, inner = again.piece("diagonals", "a"), again.piece("teacher", "b")
    assert inner.finished and inner.kept() is not None and not outer.finished
    inner.finish(*content(inner, 9))
    outer.finish(*content(outer, 2))
    assert again.number("loss", "c", lambda: 0.5) == 0.5
    assert sorted(os.listdir(tmp_path / "state")) == ["0000-diagonals.safetensors", "run.json"]
    again = begun(tmp_path / "state")
    assert again.piece("diagonals", "a").finished and again.number("loss", "c", unknown) == 0.5


def test_a_run_that_takes_no_time_leaves_and_hashes_nothing(tmp_path: Path) -> None:
    state = RunState(tmp_path / "state")
    state.begin({}, nothing)  # type: ignore[arg-type]
    state.number("loss", "a", lambda: 0.1)
    piece = state.piece("gates", "a")
    piece.step_done(lambda: pytest.fail("it was written"))
    piece.finish(*content(piece, 2))
    state.remove()
    assert not list(tmp_path.iterdir())


def test_writing_takes_a_tenth_of_the_time_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("optimum_grasprune.execution.run_state.time.monotonic", lambda: now[0])
    state = begun(tmp_path / "state", every=100.0)
    written: list[float] = []
    write = state.write

    def slow(*under_way: object) -> None:
        written.append(now[0])
        write(*under_way)  # type: ignore[arg-type]

    def content_that_takes_long() -> Content:
        return content(piece, 1)

    monkeypatch.setattr(state, "write", slow)
    monkeypatch.setattr(
        "optimum_grasprune.execution.run_state.write_standing", lambda *_: now.__setitem__(0, now[0] + 30)
    )
    piece = state.piece("gates", "a")
    for _ in range(100):
        now[0] += 10.0
        piece.step_done(content_that_takes_long)
    assert written == [100.0, 430.0, 760.0, 1090.0]


@pytest.mark.parametrize(
    ("of", "line"),
    [
        ({**OF, "seed": 1}, "holds the state of another run: its seed is 0, not 1; --resume no replaces it"),
        ({"seed": 0}, r"its keep_ratios is \[0.5\], not None"),
        ({**OF, "plan": "x"}, "its plan is None, not x"),
    ],
)
def test_the_state_of_another_run_is_left_alone(of: dict[str, object], line: str, tmp_path: Path) -> None:
    begun(tmp_path / "state").number("loss", "a", lambda: 0.1)
    before = (tmp_path / "state" / "run.json").read_bytes()
    with pytest.raises(CheckpointError, match=line):
        begun(tmp_path / "state", of)
    assert (tmp_path / "state" / "run.json").read_bytes() == before
    assert begun(tmp_path / "state", of, resume=False).number("loss", "a", lambda: 0.2) == 0.2
    assert begun(tmp_path / "state", of).number("loss", "a", unknown) == 0.2


def test_another_model_is_another_run(tmp_path: Path) -> None:
    begun(tmp_path / "state").number("loss", "a", lambda: 0.1)
    with pytest.raises(CheckpointError, match="its model is abc, not def"):
        RunState(tmp_path / "state").begin(OF, lambda: {"model": "def"})  # type: ignore[arg-type]


def test_what_asks_for_other_work_is_another_run(tmp_path: Path) -> None:
    begun(tmp_path / "state").number("loss", "a", lambda: 0.1)
    with pytest.raises(CheckpointError, match="it has loss at 0, where gates is asked for; --resume no starts anew"):
        begun(tmp_path / "state").piece("gates", "a")
    with pytest.raises(CheckpointError, match="it has loss at 0, where loss is asked for"):
        begun(tmp_path / "state").number("loss", "b", unknown)


def test_other_work_is_forgotten_where_it_may_differ(tmp_path: Path) -> None:
    piece = begun(tmp_path / "state").piece("teacher", "a")
    piece.finish(*content(piece, 3))
    state = begun(tmp_path / "state")
    piece = state.piece("teacher", "b", may_differ=True)
    assert not piece.finished and piece.kept() is None
    piece.finish(*content(piece, 5))
    kept = begun(tmp_path / "state").piece("teacher", "b", may_differ=True).kept()
    assert kept is not None and kept[0].step == 5


def test_what_is_damaged_or_in_the_way_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    for name, content_of in {"half": '{"of": {', "later": '{"format": 2, "of": {}}', "list": "[]"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(content_of)
    for folder, line in {
        "file": "for the state of the run is a file",
        "other": "holds something other than the state of a run: notes.txt",
        "half": "run.json is not the state of a run: Expecting property name",
        "later": "is not the state of a run: the format is 2, which a later version wrote",
        "list": "is not the state of a run: ",
    }.items():
        with pytest.raises(CheckpointError, match=line):
            RunState(tmp_path / folder).begin({}, nothing)  # type: ignore[arg-type]
    assert (tmp_path / "other" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("damage", [b"half of it", None])
def test_tensors_that_are_damaged_or_gone(damage: bytes | None, tmp_path: Path) -> None:
    piece = begun(tmp_path / "state").piece("gates", "a")
    piece.finish(*content(piece, 3))
    file = tmp_path / "state" / "0000-gates.safetensors"
    file.unlink() if damage is None else file.write_bytes(damage)
    with pytest.raises(CheckpointError, match="0000-gates.safetensors is not the state of a run: .*--resume no starts"):
        begun(tmp_path / "state").piece("gates", "a").kept()


def test_files_without_an_index_are_of_no_run(tmp_path: Path) -> None:
    """They were written before the index was lost, by who knows what run."""
    piece = begun(tmp_path / "state").piece("gates", "a")
    piece.step_done(lambda: content(piece, 1))
    (tmp_path / "state" / "run.json").unlink()
    assert begun(tmp_path / "state").piece("gates", "a").kept() is None


def test_a_full_disk_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = begun(tmp_path / "state")
    assert state.number("loss", "a", lambda: 0.1) == 0.1
    before = (tmp_path / "state" / "run.json").read_bytes()

    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fails)
        with pytest.warns(GraspruneWarning, match="cannot be kept, which goes on without: .*No space left on device"):
            assert state.number("loss", "a", lambda: 0.2) == 0.2
        assert state.number("loss", "a", lambda: 0.3) == 0.3  # and says no more
    assert (tmp_path / "state" / "run.json").read_bytes() == before
    assert state.number("loss", "a", lambda: 0.4) == 0.4
    again = begun(tmp_path / "state")
    assert [again.number("loss", "a", unknown) for _ in range(4)] == [0.1, 0.2, 0.3, 0.4]


def test_only_its_own_files_are_removed(tmp_path: Path) -> None:
    state = begun(tmp_path / "state")
    piece = state.piece("gates", "a")
    piece.finish(*content(piece, 3))
    (tmp_path / "state" / ".0000-gates.safetensors.partial").write_bytes(b"")  # of a run that was killed
    (tmp_path / "state" / "notes.txt").write_text("mine")
    state.remove()
    assert os.listdir(tmp_path / "state") == ["notes.txt"]


def test_the_time_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("optimum_grasprune.execution.run_state.time.monotonic", lambda: now[0])
    state = begun(tmp_path / "state")
    begin = state.clock()
    now[0] += 7
    assert state.clock() - begin == 7
    now[0] = 3.0  # of another start of the machine
    again = begun(tmp_path / "state")
    assert again.clock() == begin and again.clock() - begin == 7
    now[0] += 2
    assert again.clock() - begin == 9


@dataclass(frozen=True)
class Work:
    """A number, or a piece of so many steps, with another one inside if asked for."""

    steps: int
    nested: bool


class Killed(BaseException):
    pass


def run(folder: Path, works: list[Work], allowed: int) -> tuple[list[int], int]:
    """All results, and how much was worked out; Killed when that is more than allowed."""
    state, done = begun(folder), [0]

    def work(value: int) -> int:
        if done[0] == allowed:
            raise Killed
        done[0] += 1
        return value

    def piece(name: str, steps: int, within: Callable[[], None] | None = None) -> int:
        piece = state.piece(name, "a")
        kept = piece.kept()
        total, behind = (0, 0) if kept is None else (int(kept[1]["sum"]), kept[0].step)
        if within is not None and not piece.finished:
            within()
        for step in range(behind + 1, steps + 1):
            total += work(step)
            current = Standing(of="a", step=step), {"sum": torch.tensor(total)}
            if step < steps:
                piece.step_done(lambda current=current: current)  # type: ignore[misc]
        if not piece.finished:
            piece.finish(Standing(of="a", step=steps), {"sum": torch.tensor(total)})
        return total

    results = []
    for number, each in enumerate(works):
        if not each.steps:
            results.append(int(state.number(f"loss {number}", "a", lambda number=number: work(number))))  # type: ignore[misc]
        else:
            results.append(piece(f"piece {number}", each.steps, (lambda: piece("inner", 2)) if each.nested else None))  # type: ignore[arg-type,return-value]
    return results, done[0]


@settings(max_examples=20, deadline=None)
@given(works=st.lists(st.builds(Work, st.integers(0, 4), st.booleans()), min_size=1, max_size=5), data=st.data())
def test_killed_anywhere_and_again_and_again_it_comes_to_the_same(works: list[Work], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        expected, whole = run(Path(folder, "whole"), works, allowed=10**6)
        total = 0
        while True:
            allowed = data.draw(st.integers(1, 6))
            try:
                results, done = run(Path(folder, "state"), works, allowed)
            except Killed:
                total += allowed
                assert total <= whole  # nothing is done twice
                continue
            assert (results, total + done) == (expected, whole)
            break


def test_a_bit_that_flipped_is_seen(tmp_path: Path) -> None:
    state = begun(tmp_path / "state")
    assert state.number("loss", "a", lambda: 0.25) == 0.25
    piece = state.piece("gates", "a")
    piece.finish(*content(piece, 3))
    for name, before, after in (("run.json", b"0.25", b"0.75"), ("0001-gates.safetensors", b"\x03", b"\x07")):
        file = tmp_path / "state" / name
        whole = file.read_bytes()
        position = whole.rindex(before)  # the tensor is the end of its file
        file.write_bytes(whole[:position] + after + whole[position + len(before) :])
        with pytest.raises(CheckpointError, match=f"{name} is not the state of a run: it is not what was written; "):
            again = begun(tmp_path / "state")
            again.number("loss", "a", unknown)
            again.piece("gates", "a").kept()
        file.write_bytes(whole)
