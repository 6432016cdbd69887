"""Plots of accuracy in tasks against what is kept. Needs matplotlib, the extra `plot`."""

from __future__ import annotations

from collections.abc import Collection

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from ..report.style import INK, dress, titled
from .accuracy import WEIGHT_BYTES
from .lines import FONT, Points, colours_of, draw_line, name_lines, scale_shares

KEPT = {
    "parameters": "parameters kept (% of all)",
    "kv_cache": "KV cache kept (% of its elements per token)",
    WEIGHT_BYTES: "weights ({unit})",
}
"""Shares that accuracy is drawn against, as `accuracy_points` knows them, and what the axis says."""

_UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))

_ROOM = 0.06
"""Above the highest and below the lowest value, as a share of what lies between them."""


def accuracy_figure(
    points: Points,
    dense: float,
    chance: float | None,
    *,
    ours: Collection[str] = (),
    kept: str = "parameters",
    dense_bytes: int | None = None,
    title: str,
    subtitle: str = "",
) -> Figure:
    """Accuracy against a share kept: a named line for each method, the dense model, and the level of chance.

    dense: accuracy of the dense model.  chance: what guessing gives; None where that is not known.
    ours: methods that are drawn bold and in colour; the others are grey.  kept: the share, of `KEPT`.
    dense_bytes: of the dense model's weights, where those are what is kept, which the axis then shows in bytes.
    """
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    colours = colours_of(points, ours)
    for label, line in points.items():
        draw_line(axes, line, label, colours.get(label))
    axes.plot([1.0], [dense], marker="o", color=INK, markersize=6, linestyle="none", label="dense")
    axes.annotate("dense", (1, dense), (0, 7), textcoords="offset points", ha="center", fontsize=FONT, color=INK)
    scale_shares(axes, points)
    unit = "" if dense_bytes is None else _show_bytes(axes, dense_bytes)
    values = [value for line in points.values() for _, value in line]
    _scale(axes, [*values, dense, dense if chance is None else chance])
    if chance is not None:
        _draw_chance(axes, chance)
    name_lines(axes, {label: line[-1] for label, line in points.items() if line}, colours)
    axes.set_xlabel(KEPT[kept].format(unit=unit), fontsize=10, color=INK)
    axes.set_ylabel("accuracy (%)", fontsize=10, color=INK)
    dress(axes)
    titled(axes, title, subtitle)
    return figure


def _show_bytes(axes: Axes, dense_bytes: int) -> str:
    """Have an axis of shares say bytes, at round numbers; their unit."""
    unit, size = next((each for each in _UNITS if dense_bytes >= 2 * each[1]), _UNITS[-1])
    whole = dense_bytes / size
    low, high = (share * whole for share in axes.get_xlim())
    ticks = MaxNLocator(nbins=8, steps=[1, 2, 5, 10]).tick_values(low, high)
    axes.xaxis.set_major_locator(FixedLocator([tick / whole for tick in ticks if low <= tick <= high]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share * whole:.4g}"))
    return unit


def _scale(axes: Axes, values: Collection[float]) -> None:
    low, high = min(values), max(values)
    room = _ROOM * (high - low or 1)
    axes.set_ylim(low - room, high + 2 * room)  # the name of the dense model stands above its point
    axes.yaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.10g}"))


def _draw_chance(axes: Axes, chance: float) -> None:
    left, _ = axes.get_xlim()
    axes.axhline(chance, color=INK, linewidth=1, linestyle="--", zorder=1, label="chance")
    axes.annotate("chance", (left, chance), (4, 3), textcoords="offset points", fontsize=FONT, color=INK)
