"""Plots of a comparison. Needs matplotlib, the extra `plot`; figures are built without its global state."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from ..evaluation.tables import in_percent
from ..report.style import INK, dress, rendered, titled
from ..writing import slug, write_file
from .accuracy import WEIGHT_BYTES, accuracy_points, headline
from .accuracy_plots import KEPT, accuracy_figure
from .lines import FONT, Points, colours_of, draw_line, name_lines, ours_among, scale_shares
from .results import ComparisonResult
from .tables import points_of

CUT = 8.0
"""Perplexity over the dense model's at which the axis ends: what lies beyond is of no use to anybody."""


def perplexity_figure(
    points: Points, dense: float, *, ours: Collection[str] = (), title: str, subtitle: str = ""
) -> Figure:
    """Perplexity over the dense model's against the share of parameters kept: a named line for each method.

    dense: perplexity of the dense model.  ours: methods that are drawn bold and in colour; the others are grey.
    The axis ends at CUT; methods without a point below it are named under the plot.
    """
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    hidden = draw_perplexity(figure.add_subplot(), points, dense, ours, title=title, subtitle=subtitle)
    if hidden:
        figure.supxlabel(f"beyond {CUT:g} at every ratio: {', '.join(hidden)}", fontsize=FONT, color="#5A5A5A")
    return figure


def draw_perplexity(
    axes: Axes, points: Points, dense: float, ours: Collection[str], *, title: str, subtitle: str = ""
) -> list[str]:
    """The same on axes of a larger figure; the methods that have no point below CUT."""
    lines = {label: [(share, value / dense) for share, value in line] for label, line in points.items()}
    colours = colours_of(lines, ours)
    for label, line in lines.items():
        draw_line(axes, line, label, colours.get(label))
    axes.plot([1.0], [1.0], marker="o", color=INK, markersize=6, linestyle="none", label="dense")
    axes.annotate("dense", (1, 1), (0, 7), textcoords="offset points", ha="center", fontsize=FONT, color=INK)
    _scale(axes)
    scale_shares(axes, lines)
    visible = {label: [point for point in line if point[1] <= CUT] for label, line in lines.items()}
    name_lines(axes, {label: line[-1] for label, line in visible.items() if line}, colours)
    axes.set_xlabel("parameters kept (% of all)", fontsize=10, color=INK)
    axes.set_ylabel("perplexity ÷ dense (log scale)", fontsize=10, color=INK)
    dress(axes)
    titled(axes, title, subtitle)
    return [label for label, line in visible.items() if not line]


def _scale(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.set_ylim(0.96, CUT)
    axes.yaxis.set_major_locator(FixedLocator([1, 1.5, 2, 3, 4, 6, 8]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda ratio, _: f"{ratio:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def write_plots(result: ComparisonResult, output: Path) -> list[Path]:
    """Write a figure, as .png and .svg, for every evaluation corpus and, with tasks, for every share kept; their paths.

    perplexity-NAME for a corpus; accuracy-parameters, accuracy-kv-cache and accuracy-weight-bytes for tasks.
    """
    figures = {**_perplexity_figures(result), **_accuracy_figures(result)}
    kinds: tuple[Literal["png"], Literal["svg"]] = ("png", "svg")
    written = []
    for name, figure in figures.items():
        for kind in kinds:
            path = output / f"{name}.{kind}"
            write_file(path, rendered(figure, kind))
            written.append(path)
    return written


def _perplexity_figures(result: ComparisonResult) -> dict[str, Figure]:
    figures = {}
    for name, corpus in result.corpora.items():
        dense = result.dense.perplexity[name]
        if dense is None:
            continue  # beyond what a float holds, and so is whatever could stand beside it
        points = points_of(result, name)
        figures[f"perplexity-{slug(name)}"] = perplexity_figure(
            points,
            dense,
            ours=ours_among(points),
            title=f"{_model(result)}: perplexity on {name}",
            subtitle=f"{corpus.windows:,} windows of {corpus.window:,} tokens, {result.precision}",
        )
    return figures


def _accuracy_figures(result: ComparisonResult) -> dict[str, Figure]:
    if result.dense.tasks is None or result.tasks is None:
        return {}
    title, dense = headline(result.dense.tasks.scores)
    if not in_percent(dense):
        return {}
    questions = sum(task.documents for task in result.tasks.tasks.values())
    figures = {}
    for kept in KEPT:
        points = accuracy_points(result, kept)
        if kept == WEIGHT_BYTES and not points:
            continue  # results of an earlier version
        figures[f"accuracy-{kept.replace('_', '-')}"] = accuracy_figure(
            points,
            dense.value,
            dense.chance,
            ours=ours_among(points),
            kept=kept,
            dense_bytes=result.dense_bytes if kept == WEIGHT_BYTES else None,
            title=f"{_model(result)}: {title}",
            subtitle=f"{', '.join(result.tasks.tasks)}: {questions:,} questions, {result.precision}",
        )
    return figures


def _model(result: ComparisonResult) -> str:
    return Path(result.model.source).name
