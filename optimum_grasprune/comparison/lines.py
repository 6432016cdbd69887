"""What the plots of a comparison share: a named line for each method. Needs matplotlib, the extra `plot`."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.transforms import blended_transform_factory

from ..report.style import BASELINE, COLOURS

_OURS = ("default", "quick", "thorough")
FONT = 9
_PALE = "#5A5A5A"
_LINE_OF_TEXT = 0.052
"""Least distance of two labels, as a share of the height of the axes."""

Point = tuple[float, float]
Points = Mapping[str, Sequence[Point]]
"""For every method, its points (share kept, between 0 and 1; what was measured), by share."""


def ours_among(labels: Collection[str]) -> list[str]:
    """The entries of a comparison that are this project's recipes, or variants of them."""
    return [label for label in labels if re.split("[+:@]", label)[0] in _OURS]


def colours_of(labels: Collection[str], ours: Collection[str]) -> dict[str, str]:
    """A colour for each of ours; the others are grey."""
    return dict(zip((label for label in labels if label in ours), itertools.cycle(COLOURS), strict=False))


def draw_line(axes: Axes, line: Sequence[Point], label: str, colour: str | None) -> None:
    """A line through the points of a method, bold where it has a colour."""
    axes.plot(
        [share for share, _ in line],
        [value for _, value in line],
        label=label,
        color=colour or BASELINE,
        marker="o",
        linewidth=2.8 if colour else 1.1,
        markersize=6 if colour else 3.5,
        zorder=3 if colour else 2,
    )


def scale_shares(axes: Axes, lines: Points) -> None:
    """A horizontal axis of shares in percent that ends at the dense model."""
    axes.set_xlim(min((share for line in lines.values() for share, _ in line), default=0.5) - 0.02, 1.02)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.10g}"))


def name_lines(axes: Axes, ends: Mapping[str, Point], colours: Mapping[str, str]) -> None:
    """The name of each line beside its last point in view, moved up or down where two would overlap."""
    order = sorted(ends, key=lambda label: ends[label][1])
    heights = apart([_height(axes, ends[label]) for label in order], _LINE_OF_TEXT)
    for label, height in zip(order, heights, strict=True):
        share, value = ends[label]
        axes.annotate(
            label,
            xy=(share, value),
            xytext=(share + 0.025, height),
            textcoords=blended_transform_factory(axes.transData, axes.transAxes),
            va="center",
            fontsize=FONT,
            fontweight="bold" if label in colours else "normal",
            color=colours.get(label, _PALE),
            arrowprops={
                "arrowstyle": "-",
                "color": "#C8C8C8",
                "linewidth": 0.7,
                "shrinkA": 1,
                "shrinkB": 3,
                "relpos": (0, 0.5),
            },
        )


def _height(axes: Axes, point: Point) -> float:
    """How high a point lies, as a share of the height of the axes, whatever their scale."""
    _, height = (axes.transData + axes.transAxes.inverted()).transform(point)
    return float(height)


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
