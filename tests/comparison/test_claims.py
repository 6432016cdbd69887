"""Claims on files: one process holds each, and one that was killed holds none."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from optimum_grasprune.comparison import claims
from optimum_grasprune.comparison.claims import (
    SILENCE,
    Claim,
    claim_on,
    claimant,
    cleared,
    ended_by_sigterm,
    holder_of,
    turn,
)
from optimum_grasprune.comparison.holders import Holder, start_of
from optimum_grasprune.errors import CheckpointError, Stopped
from optimum_grasprune.writing import partial_of, write_json

HERE = Holder.this_process()
needs_proc = pytest.mark.skipif(HERE.started is None, reason="the system tells nothing of processes")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "cells" / "flap-0.5.json"


def claim_by(holder: Holder, target: Path, age: float = 0.0) -> None:
    """A claim as another process would have left it."""
    target.parent.mkdir(exist_ok=True)
    write_json(claim_on(target), holder.to_dict())
    os.utime(claim_on(target), (time.time() - age,) * 2)


def taken(target: Path) -> bool:
    claim = Claim.take(target)
    if claim is not None:
        claim.release()
    return claim is not None


def test_one_holds_it_until_it_lets_go(target: Path) -> None:
    claim = Claim.take(target)
    assert claim is not None and Claim.take(target) is None
    holder = claimant(target)
    assert holder == claim.holder and str(holder) == f"process {os.getpid()} on {HERE.host}"
    assert [file.name for file in target.parent.iterdir()] == [".flap-0.5.json.claim"]
    claim.release()
    assert claimant(target) is None and not list(target.parent.iterdir())
    with pytest.raises(KeyError), Claim.take(target) or pytest.fail("is held"):
        raise KeyError
    assert taken(target)


@needs_proc
def test_a_process_that_was_killed_holds_nothing(target: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    of_it = dataclasses.replace(HERE, pid=process.pid, started=start_of(process.pid))
    claim_by(of_it, target, age=9 * SILENCE)  # it may be stopped, as in a debugger
    partial = partial_of(target, of_it.host, of_it.pid)
    other = partial_of(target, of_it.host, of_it.pid + 1)
    for path in (partial, other):
        path.write_text("{")
    assert of_it.runs() and not taken(target) and partial.exists()
    process.kill()
    while of_it.runs():  # until the signal is there; nobody has waited for the process
        time.sleep(0.01)
    assert taken(target) and not partial.exists() and other.exists()
    claim_by(of_it, target)
    process.communicate()
    assert taken(target)


@needs_proc
def test_a_later_process_of_the_same_number_is_another(target: Path) -> None:
    assert HERE.started is not None
    claim_by(dataclasses.replace(HERE, started=HERE.started - 1), target)
    assert taken(target)
    claim_by(HERE, target)
    assert not taken(target)


@pytest.mark.parametrize("change", [{"host": "elsewhere", "system": "elsewhere"}, {"system": "a container"}])
def test_elsewhere_it_counts_how_long_nothing_was_heard(target: Path, change: dict[str, str]) -> None:
    holder = dataclasses.replace(HERE, pid=2**22 + 1, **change)  # no process has this number here
    for age, left in ((0, False), (SILENCE - 60, False), (SILENCE + 60, True)):
        claim_by(holder, target, age)
        assert (claimant(target) is None) == left and taken(target) == left


@pytest.mark.parametrize("content", ["", "{", "{}", "[]"])
def test_what_was_not_written_to_its_end_is_nobodys_in_time(target: Path, content: str) -> None:
    claim_by(HERE, target)
    claim_on(target).write_text(content)
    assert not taken(target)
    os.utime(claim_on(target), (time.time() - SILENCE - 60,) * 2)
    assert taken(target)


def test_one_that_was_faster_keeps_it(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two see that a claim is left; when the second comes to remove it, the first has made its own in its place."""
    answers = [True]
    seen = claims._is_left
    claim = Claim.take(target)
    assert claim is not None
    monkeypatch.setattr(claims, "_is_left", lambda path: answers.pop() if answers else seen(path))
    assert not cleared(target)
    assert not answers and holder_of(claim_on(target)) == claim.holder
    claim.release()
    assert not list(target.parent.iterdir())


@needs_proc
def test_only_one_removes_what_is_left(target: Path) -> None:
    """Also where one that was about to was killed."""
    dead = dataclasses.replace(HERE, pid=2**22 + 1)
    claim_by(dead, target)
    removing = Claim.take(claim_on(target))
    assert removing is not None and not taken(target) and not cleared(target)
    removing.release()
    claim_by(dead, claim_on(target))
    assert taken(target) and not list(target.parent.iterdir())


def test_what_another_has_taken_over_is_not_removed(target: Path) -> None:
    claim = Claim.take(target)
    assert claim is not None
    other = dataclasses.replace(claim.holder, since="later")
    claim_by(other, target)
    claim.release()
    assert holder_of(claim_on(target)) == other


def test_it_is_touched_while_it_is_held(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "BEAT", 0.001)
    claim = Claim.take(target)
    assert claim is not None
    os.utime(claim_on(target), (0, 0))
    while not claim_on(target).stat().st_mtime:
        time.sleep(0.001)
    claim.release()


def test_a_folder_that_takes_no_files(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot be written"):
        Claim.take(tmp_path / "file" / "flap.json")


def test_turns(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "LOOK", 0.0)
    waited: list[Holder] = []

    def entered(wait: Callable[[Holder], None]) -> bool:
        """Whether the claim is held inside the block."""
        with turn(target, done=target.exists, wait=wait):
            return claimant(target) is not None

    claim = Claim.take(target)
    assert claim is not None

    def fails(holder: Holder) -> None:
        waited.append(holder)
        claim.release()

    assert entered(fails) and waited == [claim.holder]
    second = Claim.take(target)
    assert second is not None

    def finishes(holder: Holder) -> None:
        target.write_text("{}")

    assert entered(finishes)  # by the one that is waited for, which has not let go yet
    second.release()
    assert not entered(waited.append) and len(waited) == 1


def test_a_terminated_process_lets_go(target: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    stopping = pytest.raises(Stopped, match="the same command goes on")
    with stopping as stopped, ended_by_sigterm(), Claim.take(target) or pytest.fail("is held"):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    assert stopped.value.code == 143 and signal.getsignal(signal.SIGTERM) == before
    assert claimant(target) is None
