from __future__ import annotations

import copy
import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest

from optimum_grasprune import GRASPConfig
from optimum_grasprune.comparison import ComparisonResult
from optimum_grasprune.comparison.tables import (
    csv_text,
    full_table,
    markdown,
    points_of,
    short_table,
    shown,
    write_tables,
)
from optimum_grasprune.errors import CheckpointError


def cell(entry: str, ratio: float, perplexities: tuple[float, float], kv: float = 0.5) -> dict[str, Any]:
    return {
        "entry": entry,
        "keep_ratio": ratio,
        "kept": {"prunable": ratio, "parameters": ratio + 0.1, "kv_cache": kv},
        "compensation": ["least_squares", "scales"] if entry == "default" else [],
        "choice": [],
        "seconds": 1234.5,
        "scores_reused": False,
        "perplexity": dict(zip(("held out|text", "wiki"), perplexities, strict=True)),
        "recipe": GRASPConfig(keep_ratio=ratio).to_dict(),
        "calibration": "ab" * 32,
    }


CORPUS = {
    "source": "corpus.txt",
    "split": "[90%:]",
    "characters": 999,
    "sha256": "cd" * 32,
    "windows": 9,
    "window": 32,
    "tokens_sha256": "ef" * 32,
}
SHAPES = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "head_dim": 8, "vocab_size": 258}
STORED: dict[str, Any] = {
    "format": 1,
    "model": {"source": "models/tiny", **SHAPES, "weights": "ab" * 32},
    "options": {"dataset": "corpus.txt", "dataset_split": None, "text_column": "text", "bos": None, "seed": 7},
    "corpora": {"held out|text": CORPUS, "wiki": {**CORPUS, "source": "wikitext2", "split": "test"}},
    "dense": {"parameters": 1000, "perplexity": {"held out|text": 5.0, "wiki": 100.0}},
    "cells": [
        cell("default", 0.5, (20.0, 1500.25)),
        cell("default", 0.8, (6.0, 110.0)),
        cell("random", 0.8, (9.0, 105.0)),
        {
            "entry": "random",
            "keep_ratio": 0.5,
            "error": "the loss is not finite",
            "recipe": GRASPConfig().to_dict(),
            "calibration": None,
        },
    ],
    "versions": {},
}


def result_of(stored: dict[str, Any]) -> ComparisonResult:
    return ComparisonResult.from_dict(stored, "comparison.json")


RESULT = result_of(STORED)


def test_excess_loss_and_points() -> None:
    assert RESULT.cells[1].pruned is not None
    assert RESULT.excess_loss(RESULT.cells[1].pruned, "wiki") == pytest.approx(math.log(1.1))
    assert points_of(RESULT, "held out|text") == {"default": [(0.6, 20.0), (0.9, 6.0)], "random": [(0.9, 9.0)]}
    assert [cell.name for cell in RESULT.failed()] == ["random at 0.5"]


def test_markdown() -> None:
    lines = markdown(RESULT).splitlines()
    assert lines[0] == "# Comparison of pruning methods on models/tiny"
    assert "Calibrated on `corpus.txt` with seed 7." in lines[2]
    assert "- held out|text: `corpus.txt`, `[90%:]`, 9 windows of 32 tokens, sha256 `cdcdcdcdcdcdcdcd…`" in lines
    table = [line for line in lines if line.startswith("| ")]
    assert table[0].startswith(
        "| method | keep ratio | kept of all | KV cache | held out\\|text | Δ nats | wiki | Δ nats |"
    )
    assert table[2] == "| dense |  | 100.0% | 100.0% | 5.000 | 0 | 100.00 | 0 |  |  |"
    assert table[3:] == [
        "| default | 0.8 | 90.0% | 50.0% | **6.000** | **+0.182** | 110.00 | +0.095 | least squares + scales | 1,234 |",
        "| random | 0.8 | 90.0% | 50.0% | 9.000 | +0.588 | **105.00** | **+0.049** | none | 1,234 |",
        "| default | 0.5 | 60.0% | 50.0% | 20.00 | +1.386 | 1,500 | +2.708 | least squares + scales | 1,234 |",
        "| random | 0.5 | – | – | – | – | – | – | failed: the loss is not finite | – |",
    ]
    assert {line.count("|") - line.count("\\|") for line in table} == {11}


def test_markdown_says_what_sparse_means() -> None:
    assert "the file is no smaller" not in markdown(RESULT)
    sparse = copy.deepcopy(STORED)
    sparse["cells"][0]["recipe"]["pattern"] = "2:4"
    assert "Of 2:4, what is not zero counts as kept: the file is no smaller." in markdown(result_of(sparse))


def test_records_without_shares_are_shown() -> None:
    bare = copy.deepcopy(STORED)
    bare["cells"][0]["kept"] = {}
    assert full_table(result_of(bare))[1][3][2:4] == ["–", "–"]
    assert points_of(result_of(bare), "wiki")["default"] == [(0.9, 110.0)]
    assert "kept_kv_cache" in csv_text(result_of(bare))


def test_csv() -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text(RESULT))))
    assert [(row["method"], float(row["keep_ratio"])) for row in rows] == [
        ("dense", 1.0),
        ("default", 0.8),
        ("random", 0.8),
        ("default", 0.5),
        ("random", 0.5),
    ]
    assert float(rows[3]["perplexity[wiki]"]) == 1500.25
    assert float(rows[3]["excess_loss[held out|text]"]) == pytest.approx(math.log(4))
    assert float(rows[1]["kept_parameters"]) == 0.9
    assert rows[1]["compensation"] == "least_squares+scales"
    assert rows[4]["error"] == "the loss is not finite" and rows[4]["perplexity[wiki]"] == ""
    assert not any(None in row for row in rows)


def test_short_table() -> None:
    columns, rows = short_table(RESULT)
    assert columns == ["method", "ratio", "kept", "KV", "held out|text", "wiki"]
    assert rows[0] == ["dense", "", "100.0%", "100.0%", "5.000", "100.00"]
    assert rows[-1] == ["random", "0.5", "–", "–", "failed", "failed"]


def test_writing_tables(tmp_path: Path) -> None:
    write_tables(RESULT, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["comparison.csv", "comparison.json", "comparison.md"]
    assert json.loads((tmp_path / "comparison.json").read_text()) == STORED
    with pytest.raises(CheckpointError, match="cannot be written"):
        write_tables(RESULT, tmp_path / "nowhere")


def test_texts_of_numbers() -> None:
    assert [shown(value) for value in (4.6712, 12.345, 2228.1)] == ["4.671", "12.35", "2,228"]


def test_perplexities_that_no_float_holds() -> None:
    """They are null in JSON; the losses beside them still compare."""
    stored = copy.deepcopy(STORED)
    stored["dense"]["loss"] = {"held out|text": math.log(5), "wiki": math.log(100)}
    for entry, loss in zip(stored["cells"][:3], (800.0, 710.0, 720.0), strict=True):
        entry["perplexity"]["wiki"] = None
        entry["loss"] = {"held out|text": math.log(entry["perplexity"]["held out|text"]), "wiki": loss}
    result = result_of(stored)
    _, rows = short_table(result)
    assert [row[-1] for row in rows] == ["100.00", "inf", "inf", "inf", "failed"]
    _, rows = full_table(result)
    assert rows[1][6] == "**inf**" and rows[1][7] == f"**{710 - math.log(100):+.3f}**" and rows[2][6] == "inf"
    assert points_of(result, "wiki") == {} and points_of(result, "held out|text") == points_of(RESULT, "held out|text")
    lines = list(csv.DictReader(io.StringIO(csv_text(result))))
    assert math.isinf(float(lines[1]["perplexity[wiki]"])) and float(lines[1]["excess_loss[wiki]"]) > 600
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False)) == stored
    assert markdown(result)


def test_large_perplexities_are_short() -> None:
    assert [shown(value) for value in (9.8765, 98.765, 1234567.0, 1e12, 1.5e300, None)] == [
        "9.877",
        "98.77",
        "1,234,567",
        "1.00e+12",
        "1.50e+300",
        "inf",
    ]
