"""The look that all plots share. Needs matplotlib, the extra `plot`; figures are built without its global state."""

from __future__ import annotations

import textwrap
from io import BytesIO
from typing import Literal

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's palette without its yellow, which is too pale on white; its black is the dense line's.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195")
MARKERS = {"o": 6.0, "s": 5.5, "^": 6.5, "D": 5.0, "v": 6.5, "*": 9.0, "p": 7.0, "X": 7.0, "<": 6.5, ">": 6.5}
"""Markers and the sizes at which they look equally large, in points."""
BASELINE = "#8A8A8A"
INK = "#333333"
_LETTERS_A_LINE = 85
"""Of a subtitle: what is wider than the axes would make them narrow."""
_LINE_HEIGHT = 14
"""Of a subtitle, in points."""


def rendered(figure: Figure, kind: Literal["png", "svg"]) -> bytes:
    """The file of a figure; the same figure gives the same bytes."""
    file = BytesIO()
    metadata = {"Date": None} if kind == "svg" else None
    with rc_context({"svg.hashsalt": "grasprune"}):
        figure.savefig(file, format=kind, dpi=200, metadata=metadata)
    return file.getvalue()


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
    """Title and subtitle above the axes, from their left edge, in as many lines as they take."""
    lines = textwrap.wrap(subtitle, _LETTERS_A_LINE)
    pad = 8 + _LINE_HEIGHT * len(lines)
    axes.set_title(textwrap.fill(title, 60), loc="left", fontsize=11, fontweight="bold", pad=pad)
    if lines:
        axes.annotate(
            "\n".join(lines),
            (0, 1),
            (0, 8),
            xycoords="axes fraction",
            textcoords="offset points",
            fontsize=9,
            color=INK,
        )
