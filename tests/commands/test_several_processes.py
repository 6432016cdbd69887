"""Exports by two processes, as torchrun starts them: what comes out, and what happens when one of them ends."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from tests.commands.children import Children
from tests.commands.conftest import PROGRESS_BAR, Outcome

Cli = Callable[..., Outcome]
SMALL = ("--num-samples", 6, "--seq-len", 24, "--held-out", 3, "--snapshots", 2, "--batch-size", 2)
LONG = ("--num-samples", 6, "--seq-len", 24, "--held-out", 3, "--epochs", 30)

# Each says by a file when all have come, and one may send itself a signal in the midst of a step.
_SETUP = """
from optimum_grasprune.execution.watch import Watch
begun = Watch.begun
def noted(rank, *given):
    watch = begun(rank, *given)
    open(os.environ["MET"] + str(rank), "w").close()
    return watch
Watch.begun = noted
from optimum_grasprune.execution import Course
goes_on = Course.goes_on
def stopped(course, *given):
    if os.environ["STOPS"] == f"{os.environ['RANK']} {given[-2]}":
        os.kill(os.getpid(), 15)
    return goes_on(course, *given)
Course.goes_on = stopped
"""


@dataclass(frozen=True)
class Pair:
    """Two processes of a run. met: the beginning of names of files, which are there when the processes have met."""

    children: Children
    processes: tuple[int, int]
    folder: Path

    def codes(self) -> list[int]:
        """The exit codes, when both have ended."""
        codes = [self.children.wait(process) for process in self.processes]
        for lines in self.printed("err"):  # whole, where a test fails
            print(*lines, sep="\n")
        return codes

    def printed(self, name: str) -> list[list[str]]:
        """The lines of each; bars are left out."""
        texts = [(self.folder / f"{name}{rank}").read_text() for rank in range(2)]
        lines = [text.replace("\r", "\n").splitlines() for text in texts]
        return [[line for line in each if line.strip() and not PROGRESS_BAR.search(line)] for each in lines]

    def wait_until_met(self) -> None:
        while not all((self.folder / f"met{rank}").exists() for rank in range(2)):
            time.sleep(0.01)


Start = Callable[..., Pair]


@pytest.fixture(scope="module")
def children() -> Iterator[Children]:
    started = Children(_SETUP)
    yield started
    started.close()


@pytest.fixture
def start(children: Children, tmp_path_factory: pytest.TempPathFactory) -> Start:
    """Start two processes with the same arguments.

    of_one: those of each by itself, in their place.  stops: rank and step at which it gets a signal.
    """

    def run(*arguments: object, of_one: Sequence[Sequence[object]] | None = None, stops: str = "") -> Pair:
        folder = tmp_path_factory.mktemp("pair")
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        environment = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        environment |= {"MET": str(folder / "met"), "STOPS": stops, "TQDM_DISABLE": "1"}
        processes = [
            children.start(
                arguments if of_one is None else of_one[rank],
                folder / f"out{rank}",
                folder / f"err{rank}",
                {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(2)
        ]
        return Pair(children, (processes[0], processes[1]), folder)

    return run


@pytest.fixture
def export(model_folder: Path, corpus_file: Path) -> tuple[object, ...]:
    return "export", "-m", model_folder, "--dataset", corpus_file, "--keep-ratio", 0.5


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "grasp_config.json").read_text())


RECIPES: dict[str, tuple[object, ...]] = {
    "grasprune": ("--method", "grasprune", "--compensation", "scales", "--search-trials", 4),
    "taylor": ("--method", "taylor", "--compensation", "energy"),
    "flap": ("--method", "flap"),
    "wanda_sp": ("--method", "wanda_sp", "--compensation", "least_squares", "--least-squares", "weighted"),
    "ddp": ("--method", "ddp"),
    "distill": ("--method", "taylor", "--compensation", "none", "--recover", "distill", "--recover-tokens", 240),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_two_processes_make_what_one_does(
    recipe: str, start: Start, export: tuple[object, ...], cli: Cli, tmp_path: Path
) -> None:
    options = (*export, *SMALL, *RECIPES[recipe])
    pair = start(*options, "--json", tmp_path / "two.json", tmp_path / "two")
    assert cli(*options, tmp_path / "one").code == 0
    assert pair.codes() == [0, 0]
    check_same(tmp_path / "one", tmp_path / "two")
    assert (tmp_path / "two.json").exists() and {each.name for each in tmp_path.iterdir()} == {"one", "two", "two.json"}
    assert pair.printed("out")[0] and not pair.printed("out")[1] and not pair.printed("err")[1]


def check_same(first: Path, second: Path) -> None:
    """Both checkpoints have the same units, and by rounding the same losses."""
    one, two = record(first), record(second)
    assert [group["kept"] for group in one["plan"]["groups"]] == [group["kept"] for group in two["plan"]["groups"]]
    for of_one, of_two in zip(one["plan"]["groups"], two["plan"]["groups"], strict=True):
        assert (of_one.get("scales") or 1) == pytest.approx(of_two.get("scales") or 1, rel=1e-5)
    for of_one, of_two in zip(one["choice"], two["choice"], strict=True):
        assert of_one == {**of_two, "loss": pytest.approx(of_two["loss"], rel=1e-5)}
    if one.get("recovery"):
        one["recovery"]["minutes"] = two["recovery"]["minutes"]
        one["recovery"]["after"] = {
            text: pytest.approx(loss, rel=1e-5) for text, loss in one["recovery"]["after"].items()
        }
    for name in one.keys() - {"plan", "choice"}:
        assert one[name] == two[name], name


def test_two_processes_hold_a_model_together(
    start: Start, export: tuple[object, ...], cli: Cli, tmp_path: Path
) -> None:
    """One sequence a step: one of them has nothing to do each time. Two ratios, and a state to go on from."""
    options = (*export, 0.8, *SMALL[:-2], "--diagonal-samples", 3, "--statistic-samples", 3)
    assert cli(*options, tmp_path / "one").code == 0
    sharded = (*options, "--runner", "sharded", tmp_path / "two")
    pair = start(*sharded, stops="1 5")
    assert pair.codes() == [143, 143]
    pair = start(*sharded)
    assert pair.codes() == [0, 0]
    for name in ("keep-0.5", "keep-0.8"):
        check_same(tmp_path / "one" / name, tmp_path / "two" / name)


def test_the_same_command_makes_the_same_bytes(start: Start, export: tuple[object, ...], tmp_path: Path) -> None:
    runs = [start(*export, *SMALL, "--compensation", "scales", tmp_path / name) for name in ("first", "second")]
    assert [pair.codes() for pair in runs] == [[0, 0]] * 2
    assert files(tmp_path / "first") == files(tmp_path / "second")


def test_several_ratios(start: Start, export: tuple[object, ...], tmp_path: Path) -> None:
    """The second ratio starts while the first process writes what came of the first."""
    pair = start(*export, 0.7, "--method", "taylor", *SMALL, tmp_path / "out")
    assert pair.codes() == [0, 0]
    assert {each.name for each in (tmp_path / "out").iterdir()} == {"keep-0.5", "keep-0.7"}


def test_bad_input_is_said_once(start: Start, export: tuple[object, ...], tmp_path: Path) -> None:
    for wrong, line in (
        (("--kl-weight", 0, "--num-samples", 9**9), "--num-samples"),
        (("--no-such-option", 1), "unrecognized arguments"),
        (("--keep-ratio", 0.0001), "--keep-ratio 0.0001"),
    ):
        pair = start(*export, *SMALL, tmp_path / "out", *wrong)
        assert pair.codes() == [2, 2]
        first, second = pair.printed("err")
        assert line in first[-1] and len([each for each in first if "error: " in each]) == 1 and not second
    assert not list(tmp_path.iterdir())


def test_what_one_process_alone_finds_wrong(start: Start, export: tuple[object, ...], tmp_path: Path) -> None:
    wrong = [each if each != 0.5 else 1.5 for each in export]
    for of_one in (
        [(*export, tmp_path / "out"), (*wrong, tmp_path / "out")],
        [(*wrong, tmp_path), (*export, tmp_path)],
    ):
        pair = start(of_one=of_one)
        assert pair.codes() == [2, 2]
        (line,), second = pair.printed("err")
        assert line.endswith("grasprune export: error: --keep-ratio 1.5: input should be less than or equal to 1")
        assert not second and not list(tmp_path.iterdir())


def test_other_commands_are_for_one_process(start: Start, model_folder: Path) -> None:
    pair = start("inspect", "-m", model_folder)
    assert pair.codes() == [2, 2]
    assert "export alone can be done by several processes, and 2 were started for this" in pair.printed("err")[0][0]
    assert not pair.printed("err")[1] and pair.printed("out") == [[], []]


def test_a_signal_stops_both_after_the_same_step_and_the_run_goes_on(
    start: Start, export: tuple[object, ...], cli: Cli, tmp_path: Path
) -> None:
    options = (*export, *SMALL, "--epochs", 3)
    assert start(*options, tmp_path / "whole").codes() == [0, 0]
    state = tmp_path / ".out.grasprune-state"
    line = f"interrupted; the same command goes on from there, --resume no starts anew (state in {state})"
    for rank, step in ((0, 3), (1, 6)):
        pair = start(*options, tmp_path / "out", stops=f"{rank} {step}")
        assert pair.codes() == [143, 143] and pair.printed("err") == [[line], []]
        assert standing(state) == step + 1
    outcome = cli(*options, tmp_path / "out")
    assert "its number of processes is 2, not 1; --resume no replaces it" in outcome.error_lines[0]
    assert start(*options, tmp_path / "out").codes() == [0, 0]
    assert files(tmp_path / "out") == files(tmp_path / "whole") and not state.exists()


def standing(state: Path) -> int:
    """Steps of the gate training that are behind it."""
    (file,) = state.glob("*-gates.safetensors")
    with safe_open(file, framework="pt") as opened:
        return json.loads(opened.metadata()["standing"])["step"]


def whole(output: Path) -> bool:
    return {"config.json", "grasp_config.json", "model.safetensors"} <= {file.name for file in output.iterdir()}


def check_one_killed(pair: Pair, killed: int, output: Path) -> None:
    """One of two processes is killed now: the other ends, says so in one line, and leaves all or nothing."""
    with suppress(ProcessLookupError):
        os.kill(pair.processes[killed], signal.SIGKILL)
    codes = pair.codes()  # the other would wait for a month
    if codes[killed] == 0:  # it had ended
        return
    assert codes[killed] == -signal.SIGKILL
    if codes[1 - killed] == 0:  # all that was left was for the first one to do
        assert killed == 1 and whole(output)
        return
    # The first may have had a warning about what it was writing.
    errors = [[line for line in lines if ": warning: " not in line] for lines in pair.printed("err")]
    lines, of_killed = errors[1 - killed], errors[killed]
    assert codes[1 - killed] == 1 and len(lines) == 1 and not of_killed
    assert f"the process of rank {killed} of 2 is gone, without which the others cannot go on" in lines[0]
    assert not output.exists() or (killed == 0 and whole(output))
    if killed:
        assert {each.name for each in output.parent.iterdir()} <= {".out.grasprune-state"}


@pytest.mark.parametrize("runner", ["whole", "sharded"])
@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_process_that_is_killed_ends_the_other(
    kills: int, runner: str, start: Start, export: tuple[object, ...], tmp_path: Path
) -> None:
    chance = random.Random(kills)
    for number in range(kills):
        output = tmp_path / str(number) / "out"
        output.parent.mkdir()
        pair = start(*export, *LONG, "--batch-size", 2, "--runner", runner, output)
        pair.wait_until_met()
        time.sleep(chance.uniform(0, 2.5))
        check_one_killed(pair, number % 2, output)
