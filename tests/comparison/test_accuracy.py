"""What tables and plots of a comparison say of tasks."""

from __future__ import annotations

import copy
import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from optimum_grasprune.comparison import ComparisonResult
from optimum_grasprune.comparison.accuracy import WEIGHT_BYTES, accuracy_points, headline
from optimum_grasprune.comparison.tables import csv_text, full_table, markdown, short_table
from tests.comparison.test_tables import RESULT, STORED, result_of


def scores(arc: float, piqa: float) -> dict[str, Any]:
    error = {"standard_error": 0.01, "documents": 1000}
    mean = {"metric": "mean", "value": (arc + piqa) / 2, "standard_error": 0.007, "documents": 2000, "chance": 0.375}
    return {
        "arc_easy": {"metric": "acc_norm", "value": arc, "chance": 0.25, **error},
        "piqa": {"metric": "acc_norm", "value": piqa, "chance": 0.5, **error},
        "mean": mean,
    }


def against(difference: float, beyond: bool) -> dict[str, Any]:
    paired = {"difference": difference, "standard_error": 0.01, "low": difference - 0.02, "high": difference + 0.02}
    counts = {"documents": 1000, "differing": 90, "beyond_noise": beyond}
    return {"recovery": 0.9, "above_chance_kept": 0.75, "difference": {**paired, **counts}}


def tasks(arc: float, piqa: float, *, beyond: bool) -> dict[str, Any]:
    names = ("arc_easy", "piqa", "mean")
    return {"scores": scores(arc, piqa), "against_dense": {name: against(-0.05, beyond) for name in names}}


ASKED = {"version": "1.0", "documents": 1000, "num_fewshot": 0, "chance": 0.25, "requests_sha256": "ab" * 32}


def with_tasks() -> ComparisonResult:
    stored = copy.deepcopy(STORED)
    stored["tasks"] = {"tasks": {"arc_easy": ASKED, "piqa": ASKED}, "lm_eval": "0.4.13"}
    stored["dense"]["tasks"] = {"scores": scores(0.6, 0.7), "answers": {"arc_easy": [1, 0], "piqa": [0, 1]}}
    first, second, third, _ = stored["cells"]
    first["tasks"] = tasks(0.45, 0.6, beyond=True)
    second["tasks"] = tasks(0.55, 0.68, beyond=False)
    third["tasks"] = tasks(0.5, 0.69, beyond=True)
    return result_of(stored)


def test_what_is_written_is_read() -> None:
    result = with_tasks()
    values = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert result_of(values) == result
    assert "tasks" not in result_of(STORED).to_dict()


def test_short_table_sums_up() -> None:
    columns, rows = short_table(with_tasks())
    assert columns[-3:] == ["mean accuracy", "recovery", "above chance kept"]
    assert rows[0][-3:] == ["65.0", "100.0%", "100.0%"]
    assert rows[1][-3:] == ["61.5 ≈", "90.0%", "75.0%"]
    assert rows[3][-3:] == ["52.5", "90.0%", "75.0%"] and rows[4][-3:] == ["–"] * 3
    assert {len(row) for row in rows} == {len(columns)}


def test_full_table_has_every_task_and_the_best_in_bold() -> None:
    columns, rows = full_table(with_tasks())
    assert columns[8:13] == ["arc easy", "piqa", "mean", "recovery", "above chance kept"]
    assert rows[0][8:11] == ["60.0", "70.0", "65.0"]
    assert rows[1][8:11] == ["**55.0 ≈**", "68.0 ≈", "**61.5 ≈**"]
    assert rows[2][8:11] == ["50.0", "**69.0**", "59.5"]
    assert rows[3][8:11] == ["45.0", "60.0", "52.5"]  # alone at its ratio
    assert {len(row) for row in rows} == {len(columns)}
    page = markdown(with_tasks())
    assert "2,000 questions of lm-evaluation-harness 0.4.13" in page and "*Tasks*" not in markdown(RESULT)


def test_csv_has_numbers() -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text(with_tasks()))))
    assert [row["score[mean]"] for row in rows] == ["0.6499999999999999", "0.615", "0.595", "0.525", ""]
    assert rows[0]["recovery[piqa]"] == "" and rows[1]["recovery[piqa]"] == "0.9"
    assert float(rows[1]["difference_low[arc_easy]"]) == pytest.approx(-0.07)
    assert rows[4]["error"] == "the loss is not finite" and not any(None in row for row in rows)


def test_points_and_headline() -> None:
    result = with_tasks()
    assert accuracy_points(result, "kv_cache") == {"default": [(0.5, 0.525), (0.5, 0.615)], "random": [(0.5, 0.595)]}
    assert [share for share, _ in accuracy_points(result, "parameters")["default"]] == [0.6, 0.9]
    assert result.dense.tasks is not None
    only = {"piqa": result.dense.tasks.scores["piqa"]}
    assert headline(only)[0] == "piqa" and headline(result.dense.tasks.scores)[0] == "mean accuracy"
    assert accuracy_points(RESULT, "parameters") == {}


def with_bytes() -> ComparisonResult:
    stored = with_tasks().to_dict()
    for cell, pruned in zip(stored["cells"], (140_000_000, 200_000_000, 269_000_000), strict=False):
        cell["weight_bytes"] = {"dense": 269_000_000, "pruned": pruned}
    return result_of(stored)


def test_bytes() -> None:
    """Of single weights that are zero a checkpoint is no smaller, whatever counts as kept."""
    result = with_bytes()
    assert accuracy_points(result, WEIGHT_BYTES) == {
        "default": [(140 / 269, 0.525), (200 / 269, 0.615)],
        "random": [(1.0, 0.595)],
    }
    assert accuracy_points(with_tasks(), WEIGHT_BYTES) == {}
    rows = list(csv.DictReader(io.StringIO(csv_text(result))))
    assert [row["weight_bytes"] for row in rows] == ["269000000", "200000000", "269000000", "140000000", ""]
    assert {row["weight_bytes"] for row in csv.DictReader(io.StringIO(csv_text(RESULT)))} == {""}


def test_plots(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from optimum_grasprune.comparison.accuracy_plots import accuracy_figure
    from optimum_grasprune.comparison.plots import _accuracy_figures, write_plots

    names = [path.name for path in write_plots(with_tasks(), tmp_path)]
    assert names[4:] == [f"accuracy-{kept}.{kind}" for kept in ("parameters", "kv-cache") for kind in ("png", "svg")]
    figure = accuracy_figure({"flap": [(0.5, 0.4), (0.8, 0.5)]}, 0.6, 0.25, kept="kv_cache", title="t")
    (axes,) = figure.axes
    assert axes.get_xlabel() == "KV cache kept (% of its elements per token)"
    low, high = axes.get_ylim()
    assert low < 0.25 and high > 0.6
    assert [line.get_label() for line in axes.get_lines()] == ["flap", "dense", "chance"]
    assert list(_accuracy_figures(with_bytes()))[2:] == ["accuracy-weight-bytes"]
    points = accuracy_points(with_bytes(), WEIGHT_BYTES)
    (axes,) = accuracy_figure(points, 0.6, None, kept=WEIGHT_BYTES, dense_bytes=269_000_000, title="t").axes
    axes.figure.canvas.draw()
    assert axes.get_xlabel() == "weights (MB)"
    ticks = zip(axes.get_xticks(), (label.get_text() for label in axes.get_xticklabels()), strict=True)
    assert [(round(269 * share), text) for share, text in ticks] == [
        (size, str(size)) for size in (140, 160, 180, 200, 220, 240, 260)
    ]
    (bare,) = accuracy_figure({}, 0.6, None, title="t").axes
    assert [line.get_label() for line in bare.get_lines()] == ["dense"]
