"""Plots of what the scripts here measure, dressed as the project's others."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from optimum_grasprune.report.style import COLOURS, INK, dress, rendered, titled
from optimum_grasprune.writing import write_file

LABELS = {"grasprune": "gate training", "fasp": "FASP", "default": "default recipe"}


def products_figure(result: dict[str, Any]) -> Figure:
    """Rates of the FFN's products at round and odd widths, a group of bars for each width."""
    rows = result["products"]
    figure, axes = _empty()
    for place, (name, label) in enumerate(
        (("up_tflops", "gate and up projection"), ("down_tflops", "down projection"))
    ):
        offsets = [index + 0.4 * (place - 0.5) for index in range(len(rows))]
        axes.bar(offsets, [row[name] for row in rows], width=0.38, label=label, color=COLOURS[place])
    axes.axhline(result["matrix_tflops"], color=INK, linestyle=(0, (4, 3)), linewidth=1.2, label="large square product")
    axes.set_xticks(range(len(rows)), [f"{row['width']:,}" for row in rows])
    axes.set_xlabel("FFN channels", fontsize=10, color=INK)
    axes.set_ylabel("TFLOP/s", fontsize=10, color=INK)
    _finish(axes, f"{result['shape']}: products at round and odd widths", result["machine"]["device"])
    return figure


def training_figure(results: list[dict[str, Any]]) -> Figure:
    """Seconds of each method beside its floor."""
    figure, axes = _empty()
    for place, (name, label) in enumerate((("seconds", "measured"), ("floor_seconds", "floor"))):
        offsets = [index + 0.4 * (place - 0.5) for index in range(len(results))]
        bars = axes.bar(offsets, [row[name] for row in results], width=0.38, label=label, color=COLOURS[place])
        axes.bar_label(bars, fmt="{:,.3g} s", fontsize=9, color=INK, padding=2)
    names = [
        f"{LABELS[row['method']]}\n{row['shape']}" + ("\nextrapolated" if row.get("extrapolated") else "")
        for row in results
    ]
    axes.set_xticks(range(len(results)), names)
    axes.set_ylabel("seconds", fontsize=10, color=INK)
    _finish(axes, "Time to prune", results[0]["machine"]["device"])
    return figure


def write_figure(figure: Figure, folder: Path, name: str) -> None:
    """Write FOLDER/NAME.png and .svg."""
    write_file(folder / f"{name}.png", rendered(figure, "png"))
    write_file(folder / f"{name}.svg", rendered(figure, "svg"))


def _empty() -> tuple[Figure, Any]:
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _finish(axes: Any, title: str, subtitle: str) -> None:
    dress(axes)
    titled(axes, title, subtitle)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=9, borderaxespad=0)


def main() -> None:
    """Plot the results in a folder: `python benchmarks/gpu/figures.py FOLDER`."""
    folder = Path(sys.argv[1])
    if (smoke := folder / "smoke.json").is_file():
        write_figure(products_figure(json.loads(smoke.read_text())), folder, "products")
    trainings = [json.loads(path.read_text()) for path in sorted(folder.glob("training-*.json"), reverse=True)]
    if trainings:
        write_figure(training_figure(trainings), folder, "training")


if __name__ == "__main__":
    main()
