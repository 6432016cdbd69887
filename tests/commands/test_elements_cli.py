"""Patterns of single weights from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands.conftest import Outcome
from tests.conftest import make_model, make_tokenizer

Cli = Callable[..., Outcome]


def export(cli: Cli, model: Path, corpus: Path, output: Path, *options: object) -> Outcome:
    sizes = ("--num-samples", 2, "--seq-len", 24)
    return cli("export", "-m", model, "--dataset", corpus, "--method", "statistical", *sizes, *options, output)


def test_export_inspect_evaluate_and_no_replay(cli: Cli, model_folder: Path, corpus_file: Path, tmp_path: Path) -> None:
    output, result = tmp_path / "sparse", tmp_path / "result.json"
    outcome = export(cli, model_folder, corpus_file, output, "--pattern", "2:4", "--json", result)
    assert outcome.code == 0, outcome.error_lines
    assert "50.00%" in outcome.out
    assert json.loads(result.read_text())["budget"]["kept"]["prunable"] == 0.5

    outcome = cli("inspect", "-m", output, "--json", result)
    assert outcome.code == 0, outcome.error_lines
    content = json.loads(result.read_text())
    assert content["parameters"] == content["budget"]["dense"]["parameters"] > content["budget"]["pruned"]["parameters"]
    assert "dense size" in outcome.out

    windows = ("--dataset", corpus_file, "--seq-len", 32, "--num-samples", 2)
    assert cli("evaluate", "-m", output, "--dense", model_folder, *windows).code == 0

    outcome = cli("export", "-m", model_folder, "--plan", output, tmp_path / "again")
    assert outcome.code == 2
    assert "holds no pruning plan: single weights were set to zero" in outcome.error_lines[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--pattern", "1:4"), "--pattern 1:4: input should be 'units', 'unstructured', '2:4' or '4:8'"),
        (("--method", "magnitude", "--pattern", "2:4"), "--pattern 2:4: magnitude supports only units"),
        (("--pattern", "2:4", "--keep-ratio", 0.6), "--keep-ratio 0.6: pattern 2:4 keeps exactly half of the weights"),
        (("--pattern", "2:4", "--compensation", "scales"), "--compensation scales: pattern 2:4 supports only none and"),
        (("--pattern", "2:4", "--kv-keep-ratio", 0.5), "--kv-keep-ratio 0.5: is for whole units; pattern 2:4 cuts"),
        (("--pattern", "4:8", "--tensor-parallel-size", 2), "--tensor-parallel-size 2: is for whole units"),
        (
            ("--pattern", "unstructured", "--budget", "total"),
            "--budget total: is for whole units; pattern unstructured",
        ),
        (
            ("--pattern", "unstructured", "--keep-ratio", 0.01),
            "keeps none of the 32 weights in a row of model.layers.0",
        ),
    ],
)
def test_bad_options(
    cli: Cli, model_folder: Path, corpus_file: Path, tmp_path: Path, options: tuple[object, ...], message: str
) -> None:
    output = tmp_path / "out"
    outcome = export(cli, model_folder, corpus_file, output, *options)
    assert outcome.code == 2
    assert len(outcome.error_lines) == 1 and message in outcome.error_lines[0], outcome.error_lines
    assert not output.exists()


def test_width_that_is_no_multiple(cli: Cli, corpus_file: Path, tmp_path: Path) -> None:
    make_model(intermediate_size=44).save_pretrained(tmp_path / "dense")
    make_tokenizer().save_pretrained(tmp_path / "dense")
    outcome = export(cli, tmp_path / "dense", corpus_file, tmp_path / "out", "--pattern", "4:8")
    assert outcome.code == 2
    assert "--pattern 4:8: model.layers.0.mlp.down_proj has 44 input channels" in outcome.error_lines[0]
