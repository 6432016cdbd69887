"""Plots of a comparison. Needs matplotlib, the extra `plot`; figures are built without its global state."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from matplotlib.transforms import blended_transform_factory

from ..report.style import BASELINE, COLOURS, INK, dress, rendered, titled
from ..writing import slug, write_file
from .results import ComparisonResult
from .tables import points_of

CUT = 8.0
"""Perplexity over the dense model's at which the axis ends: what lies beyond is of no use to anybody."""

_OURS = ("default", "quick", "thorough")
_FONT = 9
_LINE_OF_TEXT = 0.052
"""Least distance of two labels, as a share of the height of the axes."""

Points = Mapping[str, Sequence[tuple[float, float]]]
"""For every method, its points (share of all parameters kept, between 0 and 1; perplexity), by share."""


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
        figure.supxlabel(f"beyond {CUT:g} at every ratio: {', '.join(hidden)}", fontsize=_FONT, color="#5A5A5A")
    return figure


def draw_perplexity(
    axes: Axes, points: Points, dense: float, ours: Collection[str], *, title: str, subtitle: str = ""
) -> list[str]:
    """The same on axes of a larger figure; the methods that have no point below CUT."""
    lines = {label: [(share, value / dense) for share, value in line] for label, line in points.items()}
    colours = dict(zip((label for label in lines if label in ours), itertools.cycle(COLOURS), strict=False))
    for label, line in lines.items():
        _draw(axes, line, label, colours.get(label))
    axes.plot([1.0], [1.0], marker="o", color=INK, markersize=6, linestyle="none", label="dense")
    axes.annotate("dense", (1, 1), (0, 7), textcoords="offset points", ha="center", fontsize=_FONT, color=INK)
    _scale(axes, [share for line in lines.values() for share, _ in line])
    visible = {label: line for label, line in lines.items() if any(ratio <= CUT for _, ratio in line)}
    _name_lines(axes, visible, colours)
    axes.set_xlabel("parameters kept (% of all)", fontsize=10, color=INK)
    axes.set_ylabel("perplexity ÷ dense (log scale)", fontsize=10, color=INK)
    dress(axes)
    titled(axes, title, subtitle)
    return [label for label in lines if label not in visible]


def _draw(axes: Axes, line: Sequence[tuple[float, float]], label: str, colour: str | None) -> None:
    axes.plot(
        [share for share, _ in line],
        [ratio for _, ratio in line],
        label=label,
        color=colour or BASELINE,
        marker="o",
        linewidth=2.8 if colour else 1.1,
        markersize=6 if colour else 3.5,
        zorder=3 if colour else 2,
    )


def _scale(axes: Axes, shares: Sequence[float]) -> None:
    axes.set_yscale("log")
    axes.set_ylim(0.96, CUT)
    axes.yaxis.set_major_locator(FixedLocator([1, 1.5, 2, 3, 4, 6, 8]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda ratio, _: f"{ratio:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlim(min(shares, default=0.5) - 0.02, 1.02)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.10g}"))


def _name_lines(axes: Axes, lines: Points, colours: Mapping[str, str]) -> None:
    """The name of each line beside its last point in view, moved up or down where two would overlap."""
    ends = {label: [point for point in line if point[1] <= CUT][-1] for label, line in lines.items()}
    order = sorted(ends, key=lambda label: ends[label][1])
    heights = apart([_height(axes, ends[label][1]) for label in order], _LINE_OF_TEXT)
    for label, height in zip(order, heights, strict=True):
        share, ratio = ends[label]
        axes.annotate(
            label,
            xy=(share, ratio),
            xytext=(share + 0.025, height),
            textcoords=blended_transform_factory(axes.transData, axes.transAxes),
            va="center",
            fontsize=_FONT,
            fontweight="bold" if label in colours else "normal",
            color=colours.get(label, "#5A5A5A"),
            arrowprops={
                "arrowstyle": "-",
                "color": "#C8C8C8",
                "linewidth": 0.7,
                "shrinkA": 1,
                "shrinkB": 3,
                "relpos": (0, 0.5),
            },
        )


def _height(axes: Axes, ratio: float) -> float:
    low, high = axes.get_ylim()
    return math.log(ratio / low) / math.log(high / low)


def apart(heights: Sequence[float], least: float) -> list[float]:
    """Ascending heights moved so that neighbours are `least` apart: each cluster spreads around its own middle.

    All stay between 0 and 1, unless there are too many of them.
    """
    clusters: list[list[float]] = []
    for height in heights:
        clusters.append([height])
        while len(clusters) > 1 and _bottom(clusters[-1], least) < _top(clusters[-2], least) + least:
            clusters[-2:] = [clusters[-2] + clusters[-1]]
    return [_bottom(cluster, least) + place * least for cluster in clusters for place in range(len(cluster))]


def _bottom(cluster: Sequence[float], least: float) -> float:
    """Where the lowest of a cluster goes when all of it lies around its mean."""
    spread = least * (len(cluster) - 1)
    return min(max(sum(cluster) / len(cluster) - spread / 2, 0.0), 1.0 - spread)


def _top(cluster: Sequence[float], least: float) -> float:
    return _bottom(cluster, least) + least * (len(cluster) - 1)


def ours_among(labels: Collection[str]) -> list[str]:
    """The entries of a comparison that are this project's recipes, or variants of them."""
    return [label for label in labels if re.split("[+:@]", label)[0] in _OURS]


def write_plots(result: ComparisonResult, output: Path) -> list[Path]:
    """Write perplexity-NAME.png and .svg for every evaluation corpus of a comparison; their paths."""
    written = []
    model = Path(result.model.source).name
    for name, corpus in result.corpora.items():
        dense = result.dense.perplexity[name]
        if dense is None:
            continue  # beyond what a float holds, and so is whatever could stand beside it
        points = points_of(result, name)
        figure = perplexity_figure(
            points,
            dense,
            ours=ours_among(points),
            title=f"{model}: perplexity on {name}",
            subtitle=f"{corpus.windows:,} windows of {corpus.window:,} tokens, fp32",
        )
        kinds: tuple[Literal["png"], Literal["svg"]] = ("png", "svg")
        for kind in kinds:
            path = output / f"perplexity-{slug(name)}.{kind}"
            write_file(path, rendered(figure, kind))
            written.append(path)
    return written
