"""`evaluate --by-position` and `evaluate --needles`, through the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from optimum_grasprune.evaluation.report import EvaluationReport
from tests.commands.conftest import Outcome
from tests.conftest import make_model, make_tokenizer

Cli = Callable[..., Outcome]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two models that read 600 tokens."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("dense", "pruned")):
        make_model(seed, max_position_embeddings=600).save_pretrained(folder / name)
        make_tokenizer().save_pretrained(folder / name)
    return folder / "dense", folder / "pruned"


def test_both_with_a_picture(cli: Cli, models: tuple[Path, Path], corpus_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    dense, pruned = models
    result, plot = tmp_path / "result.json", tmp_path / "plot.svg"
    asked = ("--by-position", "--num-samples", 2, "--needles", f"{corpus_file}[10%:]", "--needle-texts", 2)
    places = ("--needle-depths", "0,50", "--dataset", corpus_file, "--json", result, "--plot", plot)
    outcome = cli("evaluate", "-m", pruned, "--dense", dense, *asked, *places)
    assert outcome.code == 0 and outcome.error_lines == [], outcome.error_lines
    for words in ("256 to 599", "nats added", "Needles found", "600 tokens", "depth 50 %"):
        assert words in outcome.out
    assert plot.read_text().startswith("<?xml")

    report = EvaluationReport.read(result)
    assert report.needles is not None and (report.needles.lengths, report.needles.texts) == ((600,), 2)
    assert report.needles.corpus.split == "[10%:]" and report.needles.depths == (0, 50)
    for model in report.models:
        ranges = (model.by_position or {})["corpus.txt"]
        assert [(each.start, each.stop, len(each.by_window)) for each in ranges] == [
            (1, 64, 2),
            (64, 128, 2),
            (128, 256, 2),
            (256, 600, 2),
        ]
        assert [(cell.length, cell.depth, len(cell.recalled)) for cell in model.needles or ()] == [
            (600, 0, 2),
            (600, 50, 2),
        ]
    # The same windows without positions give the same perplexity.
    again = tmp_path / "again.json"
    options = ("--dataset", corpus_file, "--seq-len", 600, "--num-samples", 2, "--json", again)
    assert cli("evaluate", "-m", dense, *options).code == 0
    (alone,) = json.loads(again.read_text())["models"]
    assert report.models[0].perplexity["corpus.txt"].loss == pytest.approx(alone["loss"], rel=1e-12)


def test_positions_of_several_corpora_and_models_side_by_side(
    cli: Cli, models: tuple[Path, Path], corpus_file: Path
) -> None:
    corpora = ("--ppl", f"start={corpus_file}[:50%]", f"end={corpus_file}[50%:]")
    outcome = cli("evaluate", "-m", *models, "--by-position", *corpora, "--seq-len", 100, "--num-samples", 1)
    assert outcome.code == 0, outcome.error_lines
    assert outcome.out.count("64 to 99") == 2 and "on start by tokens before" in outcome.out
    assert "nats added" not in outcome.out


def test_needles_alone(cli: Cli, models: tuple[Path, Path]) -> None:
    asked = ("--needles", "sampled", "--needle-lengths", "500", "--needle-depths", "50", "--needle-texts", 1)
    outcome = cli("evaluate", "-m", models[0], *asked)
    assert outcome.code == 0 and "500 tokens" in outcome.out, outcome.error_lines
    assert "perplexity" not in outcome.out


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--by-position", "--seq-len", "601"), "--seq-len 601: the model {dense} reads at most 600 tokens"),
        (("--by-position", "--dataset", "{short}"), "the evaluation corpus has 9 tokens, less than one window of 600"),
        (
            ("--needles", "sampled", "--needle-lengths", "512,1024"),
            "--needle-lengths 1024: the model {dense} reads at most 600 tokens",
        ),
        (("--needles", "sampled", "--needle-depths", "50,120"), "--needle-depths 120: input should be less than or"),
        (
            ("--needles", "{short}", "--needle-depths", "5"),
            "--needles {short}: has 9 tokens, too few for a text of 600",
        ),
        (("--needles", "sampled", "--needle-lengths", "90"), "--needle-lengths 90: 5 numbers and a question alone"),
        (("--needles", "{short}[90:10%"), "--needles {short}[90:10%: "),
        (("--needle-depths", "50,62.5"), "--needle-depths 50,62.5: is of use only with --needles"),
        (("--needles", "sampled", "--seq-len", "64"), "--seq-len 64: is of use only with a corpus"),
        (("--plot", "plot.png"), "--plot plot.png: is of use only with --by-position or --needles"),
        (("--by-position", "--plot", "plot.pdf"), "--plot plot.pdf: should end in .png or .svg"),
        (("--needles", "{short}", "--plot", "{short}"), "--plot {short}: should end in .png or .svg"),
        (("--needles", "{image}", "--plot", "{image}"), "--plot {image}: is the corpus"),
    ],
)
def test_refusals(cli: Cli, models: tuple[Path, Path], tmp_path: Path, options: tuple[str, ...], line: str) -> None:
    short, image = tmp_path / "short.txt", tmp_path / "text.png"
    for file in (short, image):
        file.write_text("Too few.\n")
    names = {"dense": models[0], "short": short, "image": image}
    outcome = cli("evaluate", "-m", models[0], *(word.format(**names) for word in options))
    assert outcome.code == 2 and len(outcome.error_lines) == 1, outcome.error_lines
    assert outcome.error_lines[0].startswith(f"optimum-cli grasprune evaluate: error: {line.format(**names)}")


def test_what_no_model_says_has_to_be_given(
    cli: Cli, models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optimum_grasprune.evaluation.models.longest_context", lambda config: None)
    outcome = cli("evaluate", "-m", models[0], "--by-position")
    assert outcome.code == 2 and outcome.error_lines[0].endswith("--by-position needs --seq-len")
    outcome = cli("evaluate", "-m", models[0], "--needles", "sampled")
    assert outcome.code == 2 and outcome.error_lines[0].endswith("give --needle-lengths")
