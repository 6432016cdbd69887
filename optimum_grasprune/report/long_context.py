"""What models make of a long context, at a glance. Needs matplotlib, the extra `plot`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from ..evaluation.context_tables import found_of
from ..evaluation.needles import Recall
from ..evaluation.perplexity import on_windows, perplexity_of
from ..evaluation.positions import RangeLoss
from ..evaluation.report import EvaluationReport, ReportedModel
from ..record.describe import public_name
from ..writing import write_file
from .style import COLOURS, INK, MARKERS, dress, rendered, titled

_FONT = 9
_PANEL = (5.2, 3.7)
_RECALL = "Blues"


def write_long_context(file: str, report: EvaluationReport) -> None:
    """Write the figure; the ending of the file says the kind. CheckpointError."""
    figure = long_context_figure(report)
    write_file(Path(file), rendered(figure, "svg" if file.endswith(".svg") else "png"))


def long_context_figure(report: EvaluationReport) -> Figure:
    """A panel of perplexity by position for each corpus; then, of needles, those found by length and a map per model.

    A map has depth downwards and length to the right: the darker, the more of the needles there were found.
    """
    corpora = list(report.models[0].by_position or ())
    needles = report.models[0].needles is not None
    maps = len(report.models) if needles else 0
    above = len(corpora) + needles
    size = _PANEL[0] * max(above, 1), _PANEL[1] * (2 if maps else 1)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    places = figure.add_gridspec(2 if maps else 1, 1)
    upper = places[0].subgridspec(1, above)
    panels = [figure.add_subplot(upper[place]) for place in range(above)]
    for axes, name in zip(panels, corpora, strict=False):
        _draw_positions(axes, report, name)
    if maps:
        _draw_lengths(panels[-1], report)
        lower = places[1].subgridspec(1, maps)
        _draw_maps([figure.add_subplot(lower[place]) for place in range(maps)], report)
    return figure


def labels_of(report: EvaluationReport) -> list[str]:
    """The models' names in a figure, without paths of this machine; the dense one says that it is."""
    names = [public_name(model.model) for model in report.models]
    return [f"{names[0]} (dense)", *names[1:]] if report.beside_first else names


def _colours(report: EvaluationReport) -> list[str]:
    own = [COLOURS[place % len(COLOURS)] for place in range(len(report.models))]
    return [INK, *own[:-1]] if report.beside_first else own


def _draw_positions(axes: Axes, report: EvaluationReport, name: str) -> None:
    """Perplexity over the middle of each range, which on a logarithmic scale is its geometric mean."""
    for model, label, colour, marker in zip(
        report.models, labels_of(report), _colours(report), list(MARKERS) * len(report.models), strict=False
    ):
        places = (model.by_position or {})[name]
        axes.plot(
            [_middle(place) for place in places],
            [perplexity_of(place.loss) for place in places],
            label=label,
            color=colour,
            marker=marker,
            markersize=MARKERS[marker],
            linewidth=1.8,
        )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tokens, _: f"{tokens:,.0f}"))
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("tokens before the predicted one (log scale)", fontsize=10, color=INK)
    axes.set_ylabel("perplexity (log scale)", fontsize=10, color=INK)
    dress(axes)
    measured = on_windows([model.perplexity[name] for model in report.models])
    titled(axes, f"Perplexity on {public_name(name)}", measured)
    axes.legend(fontsize=_FONT, frameon=False)


def _middle(place: RangeLoss) -> float:
    return math.sqrt(place.start * (place.stop - 1))


def _draw_lengths(axes: Axes, report: EvaluationReport) -> None:
    """The share of needles found against the length of the text, with its standard error over needles."""
    lengths = sorted({cell.length for cell in report.models[0].needles or ()})
    for model, label, colour, marker in zip(
        report.models, labels_of(report), _colours(report), list(MARKERS) * len(report.models), strict=False
    ):
        cells = [[cell for cell in model.needles or () if cell.length == length] for length in lengths]
        shares = [found_of(group) for group in cells]
        counts = [sum(len(cell.recalled) for cell in group) for group in cells]
        errors = [math.sqrt(share * (1 - share) / count) for share, count in zip(shares, counts, strict=True)]
        axes.errorbar(
            lengths,
            [100 * share for share in shares],
            yerr=[100 * error for error in errors],
            label=label,
            color=colour,
            marker=marker,
            markersize=MARKERS[marker],
            linewidth=1.8,
            capsize=2.5,
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(-3, 103)
    axes.set_xlabel("tokens in the text (log scale)", fontsize=10, color=INK)
    axes.set_ylabel("needles found (%)", fontsize=10, color=INK)
    dress(axes)
    titled(axes, "Hidden numbers recalled", _asked(report))
    axes.legend(fontsize=_FONT, frameon=False, loc="lower left")


def _asked(report: EvaluationReport) -> str:
    if (needles := report.needles) is None:
        return ""
    return f"{len(needles.depths)} in each of {needles.texts} texts a length; bars: standard error"


def _draw_maps(panels: Sequence[Axes], report: EvaluationReport) -> None:
    for axes, model, label in zip(panels, report.models, labels_of(report), strict=True):
        cells = grid(model)
        axes.imshow(cells, cmap=_RECALL, vmin=0, vmax=1, aspect="auto")
        lengths, depths = _axes_of(model)
        axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths])
        axes.set_yticks(range(len(depths)), [f"{depth:g}" for depth in depths])
        axes.set_title(f"{label}: % found", loc="left", fontsize=10, fontweight="bold")
        axes.set_xlabel("tokens in the text", fontsize=10, color=INK)
        axes.tick_params(colors=INK, labelsize=_FONT, length=0)
        for side in axes.spines.values():
            side.set_visible(False)
        for row, shares in enumerate(cells):
            for column, share in enumerate(shares):
                ink = "white" if share > 0.55 else INK
                axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=8, color=ink)
    panels[0].set_ylabel("depth of the needle (%)", fontsize=10, color=INK)


def _axes_of(model: ReportedModel) -> tuple[list[int], list[float]]:
    cells = model.needles or ()
    return sorted({cell.length for cell in cells}), sorted({cell.depth for cell in cells})


def grid(model: ReportedModel) -> list[list[float]]:
    """The share of needles found: a row for each depth, from the beginning on, a column for each length."""
    lengths, depths = _axes_of(model)
    found: dict[tuple[float, int], Recall] = {(cell.depth, cell.length): cell for cell in model.needles or ()}
    return [[found_of([found[depth, length]]) for length in lengths] for depth in depths]
