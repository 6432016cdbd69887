"""Which process does what: pure functions, and one process among others that are played by the test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimum_grasprune.comparison import Cell, Shard, cells_of
from optimum_grasprune.comparison.claims import Claim
from optimum_grasprune.comparison.results import FailedCell
from optimum_grasprune.comparison.shards import order, shares
from optimum_grasprune.comparison.together import Job, Together, jobs_of
from optimum_grasprune.errors import OptionError


def test_the_form() -> None:
    assert Shard.parse("1/1") == Shard(1, 1) and Shard.parse("3/12") == Shard(3, 12)
    for text in ("0/3", "4/3", "a/b", "1", "", "1/0", "-1/3", "1/3/5", " 1/3", "1.0/3", "01/3", "٣/٤"):
        with pytest.raises(OptionError, match="should be I/N") as error:
            Shard.parse(text)
        assert error.value.option == "shard"


def test_groups_stay_together_and_the_largest_goes_first() -> None:
    assert shares(["a", "a", "b", "c", "c", "c"], 2) == [[3, 4, 5], [0, 1, 2]]
    assert shares(["a", "b", "a", "b"], 3) == [[0, 2], [1, 3], []]
    assert shares([], 2) == [[], []]


def test_others_come_after_its_own_from_their_ends() -> None:
    groups = ["a", "a", "b", "b", "c", "c"]
    assert order(groups, Shard(1, 3)) == ([0, 1], [3, 2, 5, 4])
    assert order(groups, Shard(2, 3)) == ([2, 3], [5, 4, 1, 0])
    assert order(["a"] * 4, Shard(2, 2)) == ([], [3, 2, 1, 0])


@given(st.lists(st.integers(0, 5), max_size=30), st.integers(1, 9))
def test_every_job_is_in_one_share_and_in_every_order(groups: list[int], count: int) -> None:
    found = shares(groups, count)
    everything = list(range(len(groups)))
    assert len(found) == count and sorted(place for share in found for place in share) == everything
    assert all(share == sorted(share) for share in found)
    assert sum(len({groups[place] for place in share}) for share in found) == len(set(groups))
    for number in range(1, count + 1):
        own, others = order(groups, Shard(number, count))
        assert own == found[number - 1] and sorted(own + others) == everything


def test_jobs() -> None:
    cells = cells_of(["default", "flap", "flap+none"], [0.8, 0.5], {})
    names = [[cell.name for cell in job] for job in jobs_of(cells, whole=lambda cell: cell.entry == "default")]
    assert names == [
        ["default at 0.8", "default at 0.5"],
        ["flap at 0.8"],
        ["flap at 0.5"],
        ["flap+none at 0.8"],
        ["flap+none at 0.5"],
    ]


class Folder:
    """The files of cells, and what a process does that runs them."""

    def __init__(self, path: Path, entries: Sequence[str] = ("flap", "flap+none", "random")) -> None:
        self.path, self.cells = path, cells_of(entries, [0.8, 0.5], {})
        self.stored: dict[str, SimpleNamespace] = {}
        self.ran: list[str] = []

    def path_of(self, cell: Cell) -> Path:
        return self.path / cell.file_name

    def take(self, name: str) -> Claim:
        claim = Claim.take(next(self.path_of(cell) for cell in self.cells if cell.name == name))
        assert claim is not None
        return claim

    def process(self, number: int, count: int = 2) -> Together:
        jobs = jobs_of(self.cells, whole=lambda cell: False)
        return Together(jobs, Shard(number, count), self.path_of, lambda cell: self.stored.get(cell.file_name))

    def finish(self, name: str, result: object = "measured") -> None:
        (cell,) = (cell for cell in self.cells if cell.name == name)
        self.stored[cell.file_name] = SimpleNamespace(result=result)

    def run(self, job: Job) -> None:
        (cell,) = job
        assert Claim.take(self.path_of(cell)) is None
        self.ran.append(cell.name)
        self.finish(cell.name)


def test_its_own_first_and_then_all_that_is_left(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.process(2).run(folder.run)
    assert folder.ran == [
        *("random at 0.8", "random at 0.5"),  # its own: scores of flap serve four cells, which are the first's
        *("flap+none at 0.5", "flap+none at 0.8", "flap at 0.5", "flap at 0.8"),
    ]
    assert folder.process(1).results(()) == (folder.stored, []) and not list(tmp_path.iterdir())


def test_what_others_have_claimed_or_finished_is_theirs(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.finish("random at 0.8")
    claim = folder.take("flap at 0.8")
    process = folder.process(2)
    process.run(folder.run)
    assert folder.ran == ["random at 0.5", "flap+none at 0.5", "flap+none at 0.8", "flap at 0.5"]
    finished, running = process.results(())
    assert running == [f"flap at 0.8 ({claim.holder})"] and len(finished) == 5
    claim.release()
    assert process.results(list(finished)) == ({}, ["flap at 0.8 (no process)"])


def test_what_is_finished_while_it_is_claimed_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder(tmp_path, ["random"])
    take = Claim.take

    def slow(target: Path) -> Claim | None:
        if target.name == "random-0.5.json":  # another process lets go of it at this very moment
            folder.finish("random at 0.5")
        return take(target)

    monkeypatch.setattr(Claim, "take", slow)
    ran: list[str] = []

    def run(job: Job) -> None:
        ran.append(job[0].name)
        folder.finish(job[0].name)

    folder.process(1).run(run)
    assert ran == ["random at 0.8"] and len(folder.stored) == 2 and not list(tmp_path.iterdir())


def test_a_claim_that_is_let_go_is_taken_up(tmp_path: Path) -> None:
    folder = Folder(tmp_path, ["random"])
    claim = folder.take("random at 0.8")

    def run(job: Job) -> None:
        folder.run(job)
        if len(folder.ran) == 1:
            claim.release()

    folder.process(1).run(run)
    assert folder.ran == ["random at 0.5", "random at 0.8"]


def test_failures_are_tried_again_by_their_own_process_once(tmp_path: Path) -> None:
    folder = Folder(tmp_path, ["flap", "random"])
    for name in ("flap at 0.8", "random at 0.8"):
        folder.finish(name, FailedCell(error="no memory"))

    def fails(job: Job) -> None:
        folder.run(job)
        folder.finish(job[0].name, FailedCell(error="no memory"))

    process = folder.process(1)
    process.run(fails)
    assert folder.ran == ["flap at 0.8", "flap at 0.5", "random at 0.5"]
    assert process.results(())[1] == []
    claim = folder.take("random at 0.8")  # by the second process, which tries it again
    assert process.results(())[1] == [f"random at 0.8 ({claim.holder})"]
    claim.release()
