"""The report of a checkpoint: `export --html`, and what `inspect` shows of how a checkpoint came to be."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from optimum_grasprune.export.checkpoint import read_numbers
from optimum_grasprune.recovery.together import sequences_of_the_others
from tests.commands.conftest import Outcome
from tests.report.test_html import Page

pytest.importorskip("matplotlib")

Cli = Callable[..., Outcome]
SMALL = ("--num-samples", 4, "--seq-len", 24, "--held-out", 2, "--snapshots", 2, "--batch-size", 1)
TITLES = [
    *("Shape", "What is kept", "How it was made", "Training", "Scores", "What the choice was made by"),
    *("Layers", "Recipe"),
]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for what the first test makes and all others look at."""
    return tmp_path_factory.mktemp("reports")


@pytest.fixture
def trained(cli: Cli, model_folder: Path, corpus_file: Path, reports: Path) -> Path:
    """A checkpoint whose gates and scales were trained, with its page beside it."""
    output = reports / "trained"
    if not output.exists():
        options = ("--dataset", corpus_file, "--keep-ratio", 0.6, "--compensation", "scales", *SMALL)
        texts = ("--eval-seq-len", 16, "--eval-samples", 1, "--evaluate", f"count={corpus_file}")
        page = ("--html", output.with_suffix(".html"))
        outcome = cli("export", "-m", model_folder, *options, *texts, *page, output)
        assert outcome.code == 0, outcome.error_lines
    return output


def titles(page: Path) -> list[str]:
    return re.findall(r"<h2 id=.*?>(.*?)</h2>", page.read_text(encoding="utf-8"))


def test_the_report_of_an_export(trained: Path, model_folder: Path) -> None:
    page = trained.with_suffix(".html")
    assert titles(page) == [*TITLES[:2], "Results", *TITLES[2:]]
    html = page.read_text(encoding="utf-8")
    read = Page(html)
    assert html.count("<img ") == 4  # shape, gates, scales, scores
    assert all(address.startswith(("#", "data:image/svg+xml;base64,")) for address in read.addresses)
    assert "http" not in html.replace("http-equiv", "")
    assert "--compensation scales" in html and "count" in [text for text, _ in read.cells]
    cells = [text for text, _ in read.cells]
    assert cells[cells.index("keep_ratio") + 1] == "0.6" and cells[cells.index("dataset") + 1] == "corpus.txt"
    assert str(trained.parent) not in html and str(model_folder.parent) not in html


def test_what_is_kept_of_the_training(trained: Path) -> None:
    numbers = read_numbers(trained)
    assert numbers is not None and numbers.scores is not None
    gates, scales = numbers.trainings
    assert (gates.label, gates.steps, scales.label) == ("gates", 4, "scales") and not scales.readings
    assert {"kept.ffn", "kept.kv", "changed.ffn", "changed.kv"} == gates.readings.keys()
    record = json.loads((trained / "grasp_config.json").read_text())
    kept = {
        kind: sum(len(group["kept"]) for group in record["plan"]["groups"] if group["kind"] == kind)
        for kind in ("ffn", "kv")
    }
    assert {each.kind: sum(each.stayed) for each in numbers.scores.kinds} == kept


def test_inspect_shows_the_same(cli: Cli, trained: Path, tmp_path: Path) -> None:
    outcome = cli("inspect", "-m", trained, "--html", tmp_path / "page.html")
    assert outcome.code == 0, outcome.error_lines
    assert titles(tmp_path / "page.html") == TITLES
    figures = []
    for which in (None, "shape", "training", "scores"):
        of = () if which is None else ("--plot-of", which)
        assert cli("inspect", "-m", trained, "--plot", tmp_path / "figure.svg", *of).code == 0
        figures.append((tmp_path / "figure.svg").read_bytes())
    assert figures[0] == figures[1] and len(set(figures)) == 3


def test_a_checkpoint_of_which_nothing_is_known(cli: Cli, trained: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(trained, old)
    (old / "grasp_report.json").unlink()
    outcome = cli("inspect", "-m", old, "--html", tmp_path / "page.html")
    assert outcome.code == 0 and titles(tmp_path / "page.html") == TITLES
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert html.count("<img ") == 1
    assert "nothing was kept of how it went" in html and "Nothing was kept of the scores" in html
    for which in ("training", "scores"):
        assert cli("inspect", "-m", old, "--plot", tmp_path / f"{which}.png", "--plot-of", which).code == 0
        assert (tmp_path / f"{which}.png").read_bytes().startswith(b"\x89PNG")


def test_a_damaged_file_is_one_line(cli: Cli, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "damaged")
    file = tmp_path / "damaged" / "grasp_report.json"
    content = json.loads(file.read_text())
    content["trainings"][0]["loss"] = "low"
    file.write_text(json.dumps(content))
    outcome = cli("inspect", "-m", tmp_path / "damaged", "--html", tmp_path / "page.html")
    assert outcome.code == 2 and len(outcome.error_lines) == 1 and not (tmp_path / "page.html").exists()
    assert "grasp_report.json: trainings.0.loss: input should be a valid tuple" in outcome.error_lines[0]
    assert cli("inspect", "-m", tmp_path / "damaged").code == 0  # which shows none of it


def test_a_replay_shows_what_its_plan_came_from(cli: Cli, trained: Path, model_folder: Path, tmp_path: Path) -> None:
    plan = ("export", "-m", model_folder, "--plan", trained)
    assert cli(*plan, tmp_path / "again").code == 0
    assert (tmp_path / "again" / "grasp_report.json").read_bytes() == (trained / "grasp_report.json").read_bytes()
    assert cli(*plan, "--compensation", "none", tmp_path / "unscaled").code == 0
    numbers = read_numbers(tmp_path / "unscaled")
    assert numbers is not None and [each.label for each in numbers.trainings] == ["gates"]


def test_each_of_several_ratios_has_a_report(cli: Cli, model_folder: Path, corpus_file: Path, tmp_path: Path) -> None:
    options = ("--dataset", corpus_file, "--keep-ratio", 0.8, 0.7, 0.6, "--compensation", "diagonals", *SMALL)
    page = ("--html", tmp_path / "report.html")
    outcome = cli("export", "-m", model_folder, *options, *page, tmp_path / "out")
    assert outcome.code == 0, outcome.error_lines
    assert sorted(each.name for each in tmp_path.glob("*.html")) == [
        f"report-keep-0.{digit}.html" for digit in (6, 7, 8)
    ]
    larger, middle, smaller = (read_numbers(tmp_path / "out" / f"keep-{ratio}") for ratio in (0.8, 0.7, 0.6))
    assert larger is not None and middle is not None and smaller is not None
    assert [each.label for each in smaller.trainings] == ["gates", "diagonals"]
    for numbers in (larger, middle):
        assert [each.label for each in numbers.trainings] == ["diagonals"]
    taken = [set(numbers.trainings[0].ends) for numbers in (larger, middle)]
    assert not taken[0] & taken[1]  # they take turns
    steps = [numbers.trainings[-1].steps for numbers in (larger, middle, smaller)]
    assert steps[0] + steps[1] == sequences_of_the_others(steps[2])


def test_a_method_that_trains_nothing(cli: Cli, model_folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    options: tuple[Any, ...] = ("--method", "magnitude", "--compensation", "none", "--html", page)
    assert cli("export", "-m", model_folder, *options, tmp_path / "out").code == 0
    assert page.read_text(encoding="utf-8").count("<img ") == 2 and "Nothing was trained" in page.read_text()


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("page.pdf", "page.pdf: should end in .html or .htm"),
        ("none/page.html", "page.html: cannot be written: no such folder"),
        ("dense/model.html", "lies inside the model that is to be pruned"),
    ],
)
def test_a_page_that_cannot_be_written_is_refused_first(
    cli: Cli, model_folder: Path, tmp_path: Path, page: str, message: str
) -> None:
    shutil.copytree(model_folder, tmp_path / "dense")
    (tmp_path / "dense" / "model.html").touch()
    options = ("--method", "magnitude", "--compensation", "none", "--html", tmp_path / page)
    outcome = cli("export", "-m", tmp_path / "dense", *options, tmp_path / "out")
    assert outcome.code == 2 and len(outcome.error_lines) == 1, outcome.error_lines
    assert "--html " in outcome.error_lines[0] and message in outcome.error_lines[0]
    assert not (tmp_path / "out").exists()


def test_what_is_drawn_needs_a_file(cli: Cli, trained: Path) -> None:
    outcome = cli("inspect", "-m", trained, "--plot-of", "scores")
    line = "--plot-of scores: is of use only with --plot"
    assert outcome.code == 2 and outcome.error_lines == [f"optimum-cli grasprune inspect: error: {line}"]
