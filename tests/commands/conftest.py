"""Runs `optimum-cli` as its entry point does, in this process."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import transformers
from optimum.commands.optimum_cli import main

PROGRESS_BAR = re.compile(r"\d+%\|")


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    error_lines: list[str]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Call with the arguments after `optimum-cli grasprune`; progress bars are left out of the error lines."""

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["optimum-cli", "grasprune", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        lines = [line for line in captured.err.replace("\r", "\n").splitlines() if line.strip()]
        return Outcome(code, captured.out, [line for line in lines if not PROGRESS_BAR.search(line)])

    return run


@pytest.fixture
def remote_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Code that comes with checkpoints is copied into a folder of this test, and forgotten after it."""
    folder = tmp_path / "modules"
    folder.mkdir()
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(folder))
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    for name in _names_of_remote_code():
        monkeypatch.delitem(sys.modules, name)
    yield
    for name in _names_of_remote_code():
        del sys.modules[name]


def _names_of_remote_code() -> list[str]:
    return [name for name in sys.modules if name.partition(".")[0] == "transformers_modules"]
