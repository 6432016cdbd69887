"""The picture in the README: quality and KV-cache tokens of SmolLM2-135M, from the results that lie beside this file.

python benchmarks/picture.py docs/smollm2-135m.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from optimum_grasprune.comparison import ComparisonResult, points_of
from optimum_grasprune.comparison.lines import ours_among
from optimum_grasprune.comparison.plots import draw_perplexity
from optimum_grasprune.report.style import BASELINE, COLOURS, INK, dress, rendered, titled
from optimum_grasprune.writing import write_file

RESULTS = Path(__file__).parent / "results"
CORPUS = "WikiText-2"
NAMES = ("comparison", "quick", "paper")
BARS = {"dense": "dense", "half": "ρ = 0.5", "uniform": "ρ = 0.5,\nhalf of the heads"}
"""Checkpoints of the serving benchmark, and what they are called in the picture."""


def main(output: Path) -> None:
    """Draw it."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    draw_quality(left)
    draw_tokens(right)
    write_file(output, rendered(figure, "png"))


def draw_quality(axes: Axes) -> None:
    """Perplexity of every method, the paper's recipe from its own run."""
    comparison, quick, paper = (ComparisonResult.read(RESULTS / "smollm2-135m" / f"{name}.json") for name in NAMES)
    points = {name: line for result in (comparison, quick, paper) for name, line in points_of(result, CORPUS).items()}
    del points["default"]  # measured when the recipes ended in scales
    dense = comparison.dense.perplexity[CORPUS]
    title, subtitle = "SmolLM2-135M: quality", f"{CORPUS} test, nothing fine-tuned"
    draw_perplexity(axes, points, dense, ours_among(points), title=title, subtitle=subtitle)


def draw_tokens(axes: Axes) -> None:
    """KV-cache tokens that vLLM reported at the same memory."""
    memory = json.loads((RESULTS / "serving-smollm2-cpu" / "benchmark.json").read_text())["memory"]
    tokens = {entry["checkpoint"]: entry["kv_cache_tokens"] for entry in memory}
    places = range(len(BARS))[::-1]
    colours = [BASELINE if name == "dense" else COLOURS[0] for name in BARS]
    axes.barh(list(places), [tokens[name] for name in BARS], color=colours, height=0.55)
    for place, name in zip(places, BARS, strict=True):
        label = f" {tokens[name]:,}" + ("" if name == "dense" else f"  × {tokens[name] / tokens['dense']:.2f}")
        axes.text(tokens[name], place, label, va="center", fontsize=9, color=INK)
    axes.set_yticks(list(places), list(BARS.values()))
    axes.set_xlim(0, 1.45 * max(tokens.values()))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1000:g} k"))
    axes.set_xlabel("KV-cache tokens in the same memory", fontsize=10, color=INK)
    dress(axes)
    axes.grid(False, axis="y")
    titled(axes, "SmolLM2-135M: what vLLM holds", "vllm serve, 1 GiB of KV cache")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
