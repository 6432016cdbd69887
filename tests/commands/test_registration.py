"""How the command joins `optimum-cli`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from optimum.commands.register import register_grasprune


def test_two_copies_of_the_registration_file_make_one_command(
    cli: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the package is installed and the command is started inside a clone of it."""
    folder = tmp_path / "optimum" / "commands" / "register"
    folder.mkdir(parents=True)
    shutil.copy(register_grasprune.__file__, folder)
    monkeypatch.syspath_prepend(tmp_path)
    for _ in range(2):  # and again in the same process
        outcome = cli("--help")
        assert outcome.code == 0 and "export" in outcome.out and not outcome.error_lines
    outcome = cli("inspect", "--help")
    assert outcome.code == 0 and "--gpu-memory" in outcome.out
