"""Plots of a comparison. Needs matplotlib, the extra `plot`; figures are built without its global state."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from .comparison import points_of, shown
from .files import slug, write_file

LOG_FROM = 5
"""Highest perplexity over lowest from which on the axis is logarithmic."""

# Okabe and Ito's palette without its yellow, which is too pale on white; its black is the dense line's. Markers differ
# too, so that the lines can be told apart in grey; after seven methods the lines are dashed.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195")
MARKERS = {"o": 6.0, "s": 5.5, "^": 6.5, "D": 5.0, "v": 6.5, "*": 9.0, "p": 7.0, "X": 7.0, "<": 6.5, ">": 6.5}
"""Markers and the sizes at which they look equally large, in points."""
_DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)))
INK = "#333333"


def perplexity_figure(
    points: Mapping[str, Sequence[tuple[float, float]]], dense: float, *, title: str, subtitle: str = ""
) -> Figure:
    """Perplexity against the share of parameters kept: a line for each method, a dashed one for the dense model.

    points: for every method, its points (share of all parameters kept, between 0 and 1; perplexity), by share.
    dense: perplexity of the dense model.
    """
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    markers = list(MARKERS)
    for place, (label, line) in enumerate(points.items()):
        marker = markers[place % len(markers)]
        axes.plot(
            [share for share, _ in line],
            [value for _, value in line],
            label=label,
            color=COLOURS[place % len(COLOURS)],
            marker=marker,
            linestyle=_DASHES[place // len(COLOURS) % len(_DASHES)],
            linewidth=1.6,
            markersize=MARKERS[marker],
            markeredgecolor="white",
            markeredgewidth=0.6,
        )
    axes.axhline(dense, color=INK, linestyle=(0, (4, 3)), linewidth=1.2, label=f"dense, {shown(dense)}", zorder=1)
    values = [dense, *(value for line in points.values() for _, value in line)]
    _scale_perplexity(axes, min(values), max(values))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}"))
    axes.set_xlabel("parameters kept (% of all)", fontsize=10, color=INK)
    scale = " (log scale)" if axes.get_yscale() == "log" else ""
    axes.set_ylabel(f"perplexity{scale}", fontsize=10, color=INK)
    dress(axes)
    titled(axes, title, subtitle)
    axes.legend(
        loc="upper left",
        bbox_to_anchor=(1.01, 1),
        frameon=False,
        fontsize=9,
        handlelength=2.6,
        labelspacing=0.7,
        borderaxespad=0,
    )
    return figure


def rendered(figure: Figure, kind: Literal["png", "svg"]) -> bytes:
    """The file of a figure; the same figure gives the same bytes."""
    file = BytesIO()
    metadata = {"Date": None} if kind == "svg" else None
    with rc_context({"svg.hashsalt": "grasprune"}):
        figure.savefig(file, format=kind, dpi=200, metadata=metadata)
    return file.getvalue()


def write_plots(result: Mapping[str, Any], output: Path) -> list[Path]:
    """Write perplexity-NAME.png and .svg for every evaluation corpus of a comparison; their paths."""
    written = []
    model = Path(result["model"]["source"]).name
    for name, corpus in result["corpora"].items():
        if result["dense"]["perplexity"][name] is None:
            continue  # beyond what a float holds, and so is whatever could stand beside it
        figure = perplexity_figure(
            points_of(result, name),
            result["dense"]["perplexity"][name],
            title=f"{model}: perplexity on {name}",
            subtitle=f"{corpus['windows']:,} windows of {corpus['window']:,} tokens, fp32",
        )
        kinds: tuple[Literal["png"], Literal["svg"]] = ("png", "svg")
        for kind in kinds:
            path = output / f"perplexity-{slug(name)}.{kind}"
            write_file(path, rendered(figure, kind))
            written.append(path)
    return written


def _scale_perplexity(axes: Axes, lowest: float, highest: float) -> None:
    number = FuncFormatter(lambda value, _: f"{value:,.10g}")
    if highest <= LOG_FROM * lowest:
        axes.yaxis.set_major_formatter(number)
        return
    axes.set_yscale("log")
    axes.set_ylim(lowest / 1.15, highest * 1.15)
    # The fewer decades, the more ticks in each, or there would be two numbers on the axis.
    ratio = highest / lowest
    subs = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0) if ratio <= 30 else (1.0, 2.0, 5.0) if ratio <= 2000 else (1.0,)
    axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=40))
    axes.yaxis.set_major_formatter(number)
    axes.yaxis.set_minor_locator(LogLocator(subs=(2.0, 5.0), numticks=40) if len(subs) == 1 else NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())


def dress(axes: Axes) -> None:
    """The look of every plot: a pale grid behind the data, no upper and right border, dark grey ink."""
    axes.grid(True, which="major", color="#DDDDDD", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=INK, labelsize=9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(INK)


def titled(axes: Axes, title: str, subtitle: str) -> None:
    """Title and subtitle above the axes, from their left edge."""
    axes.set_title(textwrap.fill(title, 60), loc="left", fontsize=11, fontweight="bold", pad=22 if subtitle else 8)
    if subtitle:
        axes.annotate(
            subtitle, (0, 1), (0, 8), xycoords="axes fraction", textcoords="offset points", fontsize=9, color=INK
        )
