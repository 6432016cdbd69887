"""What a case of the fuzzing is, how many there are, and what every one of them must satisfy.

`make test` runs a few of each kind, always the same ones; `make fuzz` runs them all, with another seed each time.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optimum_grasprune.errors import GraspruneError
from tests.commands.conftest import Outcome

PROFILE = "fuzz"
"""The profile of hypothesis in which all cases run."""

_SHARE_OF_TEST = 250
"""Of this many cases one runs in `make test`."""

_SLOWEST = timedelta(seconds=60)
"""A case that takes longer hangs, whatever else the machine does."""

_SEVERAL_LINES = ("usage:", " ")
"""How lines begin that argparse prints above its error."""

_OF_OPTIMUM = "Optimum CLI tool: error: unrecognized arguments: "
"""What its own parser says of words that are left over, as they are: line breaks too."""

ran: dict[str, int] = {}
"""Cases that were run, by test."""


def fuzzed(cases: int, **strategies: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a test run on so many drawn cases. strategies: of its arguments."""
    whole = settings.get_current_profile_name() == PROFILE
    chosen = settings(
        max_examples=cases if whole else max(2, cases // _SHARE_OF_TEST),
        derandomize=not whole,
        database=settings.default.database if whole else None,
        deadline=_SLOWEST,
        suppress_health_check=list(HealthCheck),
    )

    def wrap(test: Callable[..., None]) -> Callable[..., None]:
        drawn = chosen(given(**strategies)(test))
        return pytest.mark.timeout(7200 if whole else 600, method="thread")(drawn)

    return wrap


class Fuzz:
    """Runs commands on damaged input, each in a folder of its own, and holds what every case must satisfy.

    cli: as in tests/commands.  home: for the folders.  canary: a file that code of a checkpoint would write.
    """

    def __init__(self, name: str, cli: Callable[..., Outcome], home: Path, canary: Path) -> None:
        self.name, self.cli, self.home, self.canary = name, cli, home, canary

    @contextmanager
    def case(self, *copied: Path) -> Iterator[Path]:
        """The folder of a case, which is the current one, with copies of files and folders; it goes afterwards."""
        ran[self.name] = ran.get(self.name, 0) + 1
        work = self.home / "case"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        for path in copied:
            (shutil.copytree if path.is_dir() else shutil.copy)(path, work / path.name)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(work)
            yield work
        assert not self.canary.exists(), "code of a checkpoint was run"

    def run(self, *arguments: object) -> Outcome:
        """Run a command in the folder of a case.

        It ends well, or in one line and exit code 2; then nothing is written. What was there stays as it was.
        """
        before = contents(Path.cwd())
        outcome = self.cli(*arguments)
        after = contents(Path.cwd())
        assert outcome.code in (0, 2), outcome
        assert not any("Traceback" in line for line in (outcome.out, *outcome.error_lines))
        if outcome.code:
            assert len(errors_in(outcome)) == 1, outcome.error_lines
            assert after == before, after.keys() ^ before.keys()
        else:
            assert {name: after.get(name) for name in before} == before
        return outcome

    def refused(self, work: Callable[[], object]) -> GraspruneError | None:
        """Do something in Python, which may end in an error of ours, of one line."""
        before = contents(Path.cwd())
        try:
            work()
        except GraspruneError as error:
            assert str(error).strip() and len(str(error).splitlines()) == 1, repr(error)
            assert contents(Path.cwd()) == before
            return error
        return None


def errors_in(outcome: Outcome) -> list[str]:
    """The lines that say what is wrong, without argparse's usage and without warnings."""
    lines = [line for line in outcome.error_lines if not line.startswith(_SEVERAL_LINES) and ": warning: " not in line]
    return lines[:1] if lines and lines[0].startswith(_OF_OPTIMUM) else lines


def contents(folder: Path) -> dict[str, bytes | None]:
    """All files of a folder, and its folders, by their paths in it."""
    return {str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes() for path in folder.rglob("*")}
