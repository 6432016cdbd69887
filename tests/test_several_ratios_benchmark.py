"""`benchmarks/several_ratios.py`, on the random model."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import script


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return script("benchmarks/several_ratios.py")


def test_what_no_part_takes_is_the_rest(bench: ModuleType) -> None:
    one, together = Counter({"gates": 2.0, "all": 3.0}), Counter({"gates": 3.0, "teacher": 0.5, "all": 4.5})
    table = bench.cost_table(one, together, "0.5", 10)
    assert "| | gates | teacher | reading text, refitting, building | all |" in table
    assert "| one, 0.5 | 2.0 | 0.0 | 1.0 | 3.0 |" in table and "| 10 together | 3.0 | 0.5 | 1.0 | 4.5 |" in table
    assert table.endswith("Together ÷ one: 1.50\n")


def test_nats_added_are_those_of_the_run_for_all(bench: ModuleType) -> None:
    alone, together = {"0.5": {"A": math.log(20)}}, {"0.9": {"A": 2.0}, "0.5": {"A": math.log(20) + 0.25}}
    *_, dense, row = bench.loss_table({"A": math.log(10)}, alone, together).splitlines()
    assert dense == "| dense | 10 |  |  |" and row == "| ρ = 0.5 | 20 | 25.68 | +0.250 |"


def test_seconds_and_losses_of_both_ways(
    bench: ModuleType, model_folder: Path, corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["several_ratios", str(model_folder), "--output", str(tmp_path), "--keep-ratios", "0.8", "0.6"]
    command += ["--alone", "0.6", "--dataset", str(corpus_file), "--dataset-split", "[:80%]"]
    command += ["--options", "num_samples=4", "held_out=2", "seq_len=24"]
    command += ["--evaluate", f"end={corpus_file}[90%:]", "--eval-seq-len", "32", "--eval-samples", "2"]
    monkeypatch.setattr(sys, "argv", command)
    bench.main()
    stored = json.loads((tmp_path / "several-ratios.json").read_text())["seeds"]["0"]
    parts = {"statistics", "gates", "teacher", "held-out losses", "reconstruction", "diagonals", "all"}
    assert set(stored["seconds"]["one"]) == set(stored["seconds"]["together"]) == parts
    assert list(stored["loss"]["alone"]) == ["0.6"] and list(stored["loss"]["together"]) == ["0.8", "0.6"]
    assert "| ρ = 0.6 |" in (tmp_path / "several-ratios.md").read_text()
    monkeypatch.setattr(sys, "argv", [*command, "--alone", "0.5"])
    with pytest.raises(SystemExit, match="2"):
        bench.main()
