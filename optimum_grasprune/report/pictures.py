"""A checkpoint at a glance: its shape, and how it came to be. Needs matplotlib, the extra `plot`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..record import ReportNumbers
from ..record.describe import public_name
from ..writing import write_file
from .curves import scores_figure, training_figure
from .html import Picture, Pictures
from .style import COLOURS, INK, dress, rendered, titled
from .tables import LayerShares

_GONE = "#E9E9E9"
_TALL, _FONT = 4.4, 9


PICTURES = ("shape", "training", "scores")
"""What there is to draw of a checkpoint."""


@dataclass(frozen=True)
class Drawn:
    """What is drawn of a checkpoint.

    model: its name.  layers: what each keeps.  numbers: how it came to be; None where nothing is known of that.
    """

    model: str
    layers: Sequence[LayerShares]
    numbers: ReportNumbers | None = None

    def figure(self, which: str) -> Figure:
        """One of `PICTURES`; where nothing is known of what it shows, it says so."""
        name, numbers = public_name(self.model), self.numbers or ReportNumbers()
        if which == "training":
            return training_figure(numbers.trainings, f"{name}: ")
        if which == "scores":
            return scores_figure(numbers.scores, f"{name}: what units were chosen by")
        return widths_figure(self.layers, title=f"{name}: what each layer keeps")

    def write(self, file: str, which: str) -> None:
        """Write a figure; the ending of the file says the kind. CheckpointError."""
        write_file(Path(file), rendered(self.figure(which), "svg" if file.endswith(".svg") else "png"))

    def pictures(self) -> Pictures:
        """All there is, for a page."""
        numbers = self.numbers or ReportNumbers()
        trainings = [
            Picture(rendered(training_figure([curves], ""), "svg"), f"loss of the training of {curves.label}, by step")
            for curves in numbers.trainings
        ]
        scores = [] if numbers.scores is None else [rendered(self.figure("scores"), "svg")]
        return Pictures(
            shape=[Picture(rendered(self.figure("shape"), "svg"), "share that each layer keeps, FFN and KV heads")],
            training=trainings,
            scores=[Picture(svg, "how many units have which score, and which of them stayed") for svg in scores],
        )


def widths_figure(layers: Sequence[LayerShares], *, title: str) -> Figure:
    """Two panels, FFN channels over KV heads: a bar for the share that each layer keeps, pale above it what went."""
    figure = Figure(figsize=(min(max(5.6, 2.4 + 0.17 * len(layers)), 14.0), _TALL), layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True)
    ffn, kv = [layer.ffn for layer in layers], [layer.kv for layer in layers]
    _draw(upper, ffn, "FFN channels", COLOURS[0])
    _draw(lower, kv, "KV heads", COLOURS[1])
    gone = any(share == 0 for share in (*ffn, *kv))
    titled(upper, title, "× marks a block that is gone" if gone else "")
    lower.set_xlabel("layer", fontsize=10, color=INK)
    lower.xaxis.set_major_locator(MaxNLocator(nbins=17, integer=True, steps=[1, 2, 5, 10]))
    lower.set_xlim(-0.7, len(layers) - 0.3)
    return figure


def _draw(axes: Axes, shares: Sequence[float], what: str, colour: str) -> None:
    places = list(range(len(shares)))
    axes.bar(places, [100.0] * len(shares), width=0.8, color=_GONE)
    axes.bar(places, [100 * share for share in shares], width=0.8, color=colour)
    gone = [place for place, share in enumerate(shares) if share == 0]
    axes.plot(gone, [9] * len(gone), marker="x", markersize=5, linestyle="none", color=INK)
    mean = 100 * sum(shares) / len(shares)
    axes.axhline(mean, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.annotate(
        f"mean\n{mean:.0f} %",
        (1, mean),
        (5, 0),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        va="center",
        fontsize=_FONT,
        color=INK,
    )
    axes.set_ylim(0, 100)
    axes.set_yticks([0, 50, 100], ["0", "50 %", "100 %"])
    axes.set_ylabel(what, fontsize=10, color=INK)
    dress(axes)
    axes.grid(False, axis="x")
