"""The launchers of `compare --shard`, as a user runs them; in place of optimum-cli a command that notes its call."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "examples" / "sharing"
OPTIONS = ["-m", "a model", "--methods", "flap", "./out put"]
NOTES = """#!{python}
import json, os, sys
number, count = sys.argv[4].split("/")
with open(os.path.join(os.environ["NOTES"], number), "w") as file:
    json.dump([sys.argv[1:], os.environ.get("CUDA_VISIBLE_DEVICES")], file)
sys.exit(3 if number == os.environ.get("FAILS") else 0)
"""
RAY = """
from types import SimpleNamespace

def init(): pass

def remote(num_gpus):
    assert num_gpus == 1
    return lambda function: SimpleNamespace(remote=function)

def get(values): return values
"""

Launch = Callable[..., tuple[int, dict[str, tuple[list[str], str | None]]]]


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    """Run a command line; its exit code, and by number what each process was called with, and its GPU."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "ray.py").write_text(RAY)
    for name, content in (("optimum-cli", NOTES.format(python=sys.executable)), ("srun", '#!/bin/sh\nexec "$@"\n')):
        (programs / name).write_text(content)
        (programs / name).chmod(0o755)

    def run(command: Sequence[object], **variables: str) -> tuple[int, dict[str, tuple[list[str], str | None]]]:
        notes = tmp_path / "notes"
        notes.mkdir(exist_ok=True)
        path = f"{programs}{os.pathsep}{os.environ['PATH']}"
        kept = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
        environment = {**kept, "PATH": path, "PYTHONPATH": str(programs), "NOTES": str(notes), **variables}
        code = subprocess.run([*map(str, command), *OPTIONS], env=environment).returncode
        return code, {file.name: tuple(json.loads(file.read_text())) for file in notes.iterdir()}

    return run


def called(number: int, count: int) -> list[str]:
    return ["grasprune", "compare", "--shard", f"{number}/{count}", *OPTIONS]


def test_processes(launch: Launch) -> None:
    assert launch([FOLDER / "processes.sh", 3]) == (0, {str(n): (called(n, 3), str(n - 1)) for n in (1, 2, 3)})
    code, calls = launch([FOLDER / "processes.sh", 2], CUDA_VISIBLE_DEVICES="5,7", FAILS="1")
    assert code == 3 and [calls[number][1] for number in "12"] == ["5", "7"]
    _, calls = launch([FOLDER / "processes.sh", 2], CUDA_VISIBLE_DEVICES="5")
    assert [calls[number][1] for number in "12"] == ["5", "5"]


def test_slurm(launch: Launch) -> None:
    array = {"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_MAX": "8"}
    assert launch([FOLDER / "slurm.sh"], **array) == (0, {"2": (called(2, 8), None)})
    assert launch([FOLDER / "slurm.sh"], **array, FAILS="2")[0] == 3
    lines = (FOLDER / "slurm.sh").read_text().splitlines()
    assert "#SBATCH --array=1-8" in lines and not lines[-1].startswith("#")


def test_ray(launch: Launch) -> None:
    code, calls = launch([sys.executable, FOLDER / "on_ray.py", 2], FAILS="1")
    assert code == 3 and {number: call for number, (call, _) in calls.items()} == {"1": called(1, 2), "2": called(2, 2)}


@pytest.mark.parametrize("script", sorted(FOLDER.glob("*.sh")), ids=lambda path: path.name)
def test_syntax(script: Path) -> None:
    assert subprocess.run(["bash", "-n", script]).returncode == 0 and os.access(script, os.X_OK)


def test_the_page_shows_what_there_is() -> None:
    page = (ROOT / "docs" / "comparing.md").read_text()
    for script in FOLDER.iterdir():
        if script.is_file():
            assert f"\n{script.read_text()}```" in page, script.name
