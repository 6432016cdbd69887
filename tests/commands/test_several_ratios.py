"""`export` at several keep ratios, and `compare --share-gates`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from optimum_grasprune import load_pruned_model
from optimum_grasprune.errors import GraspruneError
from optimum_grasprune.export.checkpoint import read_record
from optimum_grasprune.loading import count_parameters
from optimum_grasprune.ratios import RatioRun
from tests.commands.conftest import Outcome

Cli = Callable[..., Outcome]
SMALL = ("--num-samples", 4, "--seq-len", 24, "--held-out", 2)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(outcome: Outcome, message: str) -> None:
    assert outcome.code == 2 and len(outcome.error_lines) == 1, outcome.error_lines
    assert message in outcome.error_lines[0]


def test_a_checkpoint_a_ratio(cli: Cli, model_folder: Path, corpus_file: Path, tmp_path: Path) -> None:
    output, result = tmp_path / "out", tmp_path / "result.json"
    options = ("--dataset", corpus_file, *SMALL, "--json", result)
    # OUTPUT stands straight after an option that takes many values.
    outcome = cli("export", "-m", model_folder, *options, "--nested", "--keep-ratio", "0.6", "0.90", output)
    assert outcome.code == 0, outcome.error_lines
    assert sorted(path.name for path in output.iterdir()) == ["keep-0.6", "keep-0.9"]
    written = json.loads(result.read_text())["checkpoints"]
    assert [entry["output"] for entry in written] == [str(output / "keep-0.9"), str(output / "keep-0.6")]
    sizes = [count_parameters(load_pruned_model(entry["output"])) for entry in written]
    assert sizes == [entry["budget"]["pruned"]["parameters"] for entry in written] and sizes[0] > sizes[1]
    assert all(entry["shared"] == {"keep_ratios": [0.9, 0.6], "nested": True} for entry in written)
    assert outcome.out.count("asked: at most") == 2

    again = cli("export", "-m", model_folder, "--plan", output / "keep-0.6", *SMALL, tmp_path / "replayed")
    assert again.code == 0, again.error_lines
    assert files(tmp_path / "replayed") == files(output / "keep-0.6")


def test_one_ratio_is_written_to_the_output_itself(
    cli: Cli, model_folder: Path, corpus_file: Path, tmp_path: Path
) -> None:
    options = ("-m", model_folder, "--method", "magnitude")
    assert cli("export", *options, "--keep-ratio", "0.6", tmp_path / "one").code == 0
    assert cli("export", tmp_path / "other", *options, "--keep-ratio", "0.6").code == 0
    assert files(tmp_path / "one") == files(tmp_path / "other")
    # Without gates to train, together is the same as one by one.
    assert cli("export", *options, "--keep-ratio", "0.6", "0.8", tmp_path / "many").code == 0
    assert files(tmp_path / "many" / "keep-0.6") == files(tmp_path / "one")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--keep-ratio", "0.6", "0.60"), "--keep-ratio 0.6: is given twice"),
        (("--keep-ratio", "0.6", "1.1"), "--keep-ratio 1.1: input should be less than or equal to 1"),
        (("--keep-ratio", "0.6", "x", "0.7"), "--keep-ratio x: input should be a valid number"),
        (("--keep-ratio", "0.6", "0.001"), "--keep-ratio 0.001: too small for at least 1 FFN channels a layer"),
        (
            ("--keep-ratio", "0.6", "--nested"),
            "--nested True: nests the masks of several keep ratios, and there is one",
        ),
        (("--nested",), "--nested True: nests the masks of several keep ratios, and there is one"),
        (("--keep-ratio", "0.6", "0.7", "--plan", "plan"), "--keep-ratio 0.6 0.7: a plan is of one ratio, its own"),
        (
            ("--method", "statistical", "--pattern", "2:4", "--held-out", 0, "--keep-ratio", "0.5", "0.7"),
            "--pattern 2:4: keeps exactly half of the weights, which leaves no other ratio",
        ),
    ],
)
def test_refused_before_anything_is_written(
    options: tuple[object, ...], message: str, cli: Cli, model_folder: Path, corpus_file: Path, tmp_path: Path
) -> None:
    outcome = cli("export", tmp_path / "out", "-m", model_folder, "--dataset", corpus_file, *SMALL, *options)
    refused(outcome, message)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_taken_stops_all_of_them(cli: Cli, model_folder: Path, tmp_path: Path) -> None:
    taken = tmp_path / "keep-0.6" / "notes.txt"
    taken.parent.mkdir()
    taken.write_text("mine")
    outcome = cli("export", "-m", model_folder, "--method", "magnitude", "--keep-ratio", "0.8", "0.6", tmp_path)
    refused(outcome, "keep-0.6 is not empty; use --overwrite")
    assert files(tmp_path) == {"keep-0.6/notes.txt": b"mine"}


def test_output_cannot_be_left_out(cli: Cli, model_folder: Path) -> None:
    for options in (("--keep-ratio", "0.6", "0.7"), ("--keep-ratio", "0.6"), ()):
        outcome = cli("export", "-m", model_folder, *options)
        assert outcome.code == 2
        assert outcome.error_lines[-1].endswith("the following arguments are required: OUTPUT")


def test_what_is_finished_stays_when_a_later_ratio_fails(
    cli: Cli, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prune = RatioRun.prune

    def fail_at(self: RatioRun, keep_ratio: float) -> object:
        if keep_ratio == 0.6:
            raise GraspruneError("the loss is nan at step 3")
        return prune(self, keep_ratio)

    monkeypatch.setattr(RatioRun, "prune", fail_at)
    output, result = tmp_path / "out", tmp_path / "result.json"
    options = ("--method", "magnitude", "--json", result, "--keep-ratio", "0.8", "0.7", "0.6", "0.5")
    outcome = cli("export", "-m", model_folder, *options, output)
    line = (
        f"at the keep ratio 0.6: the loss is nan at step 3; finished checkpoints: {output}/keep-0.8, {output}/keep-0.7"
    )
    refused(outcome, line)
    assert sorted(path.name for path in output.iterdir()) == ["keep-0.7", "keep-0.8"]
    assert read_record(output / "keep-0.7") is not None
    assert not result.exists()


def test_comparing_gates_that_are_shared(cli: Cli, model_folder: Path, corpus_file: Path, tmp_path: Path) -> None:
    options = ("--methods", "default", "magnitude", "--keep-ratios", "0.5", "0.8", "--dataset", corpus_file, *SMALL)
    evaluation = ("--evaluate", f"numbers={corpus_file}[90%:]", "--eval-seq-len", 24, "--eval-samples", 2, "--no-plot")
    command = ("compare", "-m", model_folder, *options, *evaluation, "--json", tmp_path / "result.json")
    assert cli(*command, tmp_path / "out").code == 0
    outcome = cli(*command, "--share-gates", tmp_path / "out")
    assert outcome.code == 0, outcome.error_lines
    # Only what differs is run again: the method that trains gates.
    assert outcome.out.count("finished before") == 3 and outcome.out.count(": running") == 2
    shared = {"keep_ratios": [0.8, 0.5], "nested": False}
    cells = json.loads((tmp_path / "result.json").read_text())["cells"]
    assert [cell.get("shared") for cell in cells] == [shared, shared, None, None]
    assert "Gates were trained once for all ratios" in (tmp_path / "out" / "comparison.md").read_text()
    assert cli(*command, "--share-gates", tmp_path / "out").out.count("finished before") == 5
    # The same bytes of what is chosen as in an export of both ratios.
    assert (
        cli(
            "export",
            "-m",
            model_folder,
            "--dataset",
            corpus_file,
            *SMALL,
            "--keep-ratio",
            "0.8",
            "0.5",
            tmp_path / "exported",
        ).code
        == 0
    )
    for cell in cells[:2]:
        record = read_record(tmp_path / "exported" / f"keep-{cell['keep_ratio']}")
        assert record is not None
        assert [choice["loss"] for choice in cell["choice"]] == [choice.loss for choice in record.choice]
