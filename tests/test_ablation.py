"""`benchmarks/ablation.py`, on the random model."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.comparison.test_tables import STORED, result_of
from tests.conftest import script


@pytest.fixture(scope="module")
def ablation() -> ModuleType:
    return script("benchmarks/ablation.py")


def test_changes_are_paired_with_the_recipe_by_seed(ablation: ModuleType) -> None:
    table = {"default": {"0.8": [1.0, 3.0], "0.5": [0.5, 0.5]}, "zero start": {"0.8": [1.25, 3.25], "0.5": [0.4, 0.8]}}
    assert ablation.markdown(table).splitlines() == [
        "| change | ρ = 0.8 | ρ = 0.5 |",
        "|---|---:|---:|",
        "| default | 2.000 ± 1.414 | 0.500 ± 0.000 |",
        "| zero start | +0.250 ± 0.000 | +0.100 ± 0.283 |",
    ]
    assert ablation.markdown({"default": {"0.5": [1.0]}, "x": {"0.5": [0.75]}}).splitlines()[3] == "| x | -0.250 |"


def test_excess_loss_is_the_logarithm_of_the_ratio(ablation: ModuleType) -> None:
    cell = {**STORED["cells"][0], "perplexity": {"A": 10 * math.e}}
    dense = {**STORED["dense"], "perplexity": {"A": 10.0}}
    losses = ablation.excess_losses(result_of({**STORED, "dense": dense, "cells": [cell]}))
    assert losses == {("A", "0.5"): pytest.approx(1)}


def test_every_change_gives_a_row(
    ablation: ModuleType,
    model_folder: Path,
    corpus_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    quick = ["--num-samples", "4", "--scale-samples", "4", "--held-out", "2", "--seq-len", "24"]
    corpora = ["--dataset", str(corpus_file), "--dataset-split", "[:80%]", "--evaluate", f"end={corpus_file}[90%:]"]
    evaluation = ["--eval-seq-len", "32", "--eval-samples", "4"]
    chosen = ["--output", str(tmp_path), "--keep-ratios", "0.5", "--changes", "zero start"]
    command = ["ablation", str(model_folder), *chosen, "--", *quick, *corpora, *evaluation]
    monkeypatch.setattr(sys, "argv", command)
    ablation.main()
    table = json.loads((tmp_path / "ablation.json").read_text())["excess_loss"]["end"]
    of_the_cut = ["no compensation", "scales only", "least squares only", "diagonals only"]
    others = ["robust least squares and scales", "robust least squares and diagonals"]
    others += ["weighted least squares and diagonals", "reconstruction only"]
    assert list(table) == ["default", *of_the_cut, *others, "zero start"]
    assert all(len(row["0.5"]) == 1 for row in table.values())
    recipes = {
        file.parents[1].name: json.loads(file.read_text())["inputs"]["recipe"]["start"]
        for file in tmp_path.glob("*/cells/*")
    }
    assert recipes == {"default-0": "fisher", "zero-start-0": "zero"}
    assert "zero start" in (tmp_path / "ablation.md").read_text()
    monkeypatch.setattr(sys, "argv", [*command[:2], *chosen, "--recipe", "quick"])
    with pytest.raises(SystemExit, match="2"):
        ablation.main()
    assert "holds the ablation of recipe default, not quick" in capsys.readouterr().err
