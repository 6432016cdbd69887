"""The course of trainings, and the scores that units were chosen by, as figures. Needs matplotlib, the extra `plot`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, FigureBase
from matplotlib.ticker import MaxNLocator, PercentFormatter

from ..record import ScoreDistribution, ScoresOfKind, TrainingCurves
from ..record.curves import CHANGED, KEPT
from ..units.kinds import KINDS
from .style import BASELINE, COLOURS, INK, dress, titled

WIDTH = 5.6
"""Of a training or of the scores, in inches."""

_GONE = "#C9C9C9"
_PANEL, _HEAD, _FONT = 1.7, 0.6, 9
_SMOOTH = 25
"""Points of a curve that a mean goes over, where there are several times as many: single batches scatter."""

Points = Sequence[float | None]


def training_figure(trainings: Sequence[TrainingCurves], title: str) -> Figure:
    """A column for each training, with panels from top to bottom: loss, shares kept, shares changed.

    title: of each column, before the label of its training.
    """
    rows = max((len(_panels(curves)) for curves in trainings), default=1)
    figure = Figure(figsize=(WIDTH * max(1, len(trainings)), _HEAD + _PANEL * max(2, rows)), layout="constrained")
    FigureCanvasAgg(figure)
    if not trainings:
        return _says(figure, title, "nothing was trained, or nothing was kept of how it went")
    parts = figure.subfigures(1, len(trainings), squeeze=False)[0]
    for part, curves in zip(parts, trainings, strict=True):
        _draw_training(part, curves, f"{title}{curves.label}")
    return figure


def scores_figure(scores: ScoreDistribution | None, title: str) -> Figure:
    """A panel for each kind of units: how many have which score, in colour those that stayed, pale those that went."""
    kinds = () if scores is None else scores.kinds
    figure = Figure(figsize=(WIDTH, _HEAD + _PANEL * max(2, len(kinds))), layout="constrained")
    FigureCanvasAgg(figure)
    if scores is None:
        return _says(figure, title, "nothing was kept of the scores")
    panels = figure.subplots(len(kinds), 1, sharex=True, squeeze=False)[:, 0]
    for axes, of_kind in zip(panels, kinds, strict=True):
        _draw_scores(axes, of_kind, scores)
    titled(panels[0], title, "in colour the units that stayed, grey those that went; dashed: the cut")
    panels[-1].set_xlabel("score", fontsize=10, color=INK)
    return figure


def _says(figure: Figure, title: str, sentence: str) -> Figure:
    axes = figure.subplots()
    axes.set_axis_off()
    titled(axes, title.rstrip(": "), "")
    axes.text(0.5, 0.5, sentence, ha="center", va="center", fontsize=10, color=INK, transform=axes.transAxes)
    return figure


def _panels(curves: TrainingCurves) -> list[tuple[str, Mapping[str, Points]]]:
    """(label of the axis, curves by kind) of each panel below the loss."""
    found = [("kept", curves.of_kinds(KEPT)), ("changed", curves.of_kinds(CHANGED))]
    return [("loss", {}), *((label, of_kinds) for label, of_kinds in found if of_kinds)]


def _draw_training(part: FigureBase, curves: TrainingCurves, title: str) -> None:
    panels = _panels(curves)
    loss, *others = part.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    _draw_loss(loss, curves)
    for axes, (label, of_kinds) in zip(others, panels[1:], strict=True):
        _draw_shares(axes, curves, of_kinds, label)
    titled(loss, title, _account(curves))
    last = (loss, *others)[-1]
    last.set_xlabel("step", fontsize=10, color=INK)
    last.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    last.set_xlim(0, curves.ends[-1] * 1.01 + 0.5)


def _account(curves: TrainingCurves) -> str:
    text = f"{curves.steps:,} step{'s' * (curves.steps != 1)}"
    if len(curves.ends) < curves.steps:
        text += f" in {len(curves.ends):,} points"
    return text if curves.kept_step is None else f"{text}; best after {curves.kept_step:,}"


def _draw_loss(axes: Axes, curves: TrainingCurves) -> None:
    smooth = running_mean(curves.loss, _SMOOTH) if len(curves.loss) >= 4 * _SMOOTH else curves.loss
    if smooth is not curves.loss:
        axes.plot(curves.ends, _plotted(curves.loss), color=COLOURS[0], linewidth=0.6, alpha=0.3)
        axes.set_ylim(*_range_without_outliers(curves, smooth))
    axes.plot(curves.ends, _plotted(smooth), color=COLOURS[0], linewidth=1.5, label="trained on")
    texts = dict.fromkeys(text for check_up in curves.check_ups for text in check_up.losses)
    for text, colour in zip(texts, COLOURS[1:], strict=False):
        looks = [(each.step, each.losses[text]) for each in curves.check_ups if text in each.losses]
        axes.plot(*zip(*looks, strict=True), marker="o", markersize=4, color=colour, label=text.replace("_", " "))
    if curves.kept_step is not None:
        axes.axvline(curves.kept_step, color=BASELINE, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.set_ylabel("loss, nats", fontsize=10, color=INK)
    dress(axes)
    if texts:
        _add_legend(axes)


def _draw_shares(axes: Axes, curves: TrainingCurves, of_kinds: Mapping[str, Points], label: str) -> None:
    for name, colour in zip(of_kinds, COLOURS, strict=False):
        points = of_kinds[name]
        smooth = label == "changed" and len(points) >= 4 * _SMOOTH
        shown = running_mean(points, _SMOOTH) if smooth else points
        heading = KINDS[name].heading if name in KINDS else name
        axes.plot(curves.ends, [100 * each for each in _plotted(shown)], color=colour, linewidth=1.4, label=heading)
    axes.yaxis.set_major_formatter(PercentFormatter(decimals=None))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.set_ylabel(label, fontsize=10, color=INK)
    dress(axes)
    if label == "kept":
        axes.set_ylim(0, 100)
        axes.set_yticks([0, 50, 100])
    axes.set_ylim(bottom=0)
    _add_legend(axes)


def _range_without_outliers(curves: TrainingCurves, smooth: Points) -> tuple[float, float]:
    """Of the loss: room for all that matters and all but a few single points."""
    known = sorted(each for each in curves.loss if each is not None)
    beyond = len(known) // 50
    looks = [loss for check_up in curves.check_ups for loss in check_up.losses.values()]
    seen = [known[beyond], known[-1 - beyond], *(each for each in smooth if each is not None), *looks]
    margin = 0.05 * (max(seen) - min(seen)) or 0.5
    return min(seen) - margin, max(seen) + margin


def _add_legend(axes: Axes) -> None:
    """Above the curves, in room of its own."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.25 * (high - low))
    axes.legend(fontsize=_FONT, frameon=False, ncols=3, loc="upper right", borderaxespad=0, handlelength=1.4)


def _draw_scores(axes: Axes, of_kind: ScoresOfKind, scores: ScoreDistribution) -> None:
    edges = scores.edges
    widths = [right - left for left, right in pairwise(edges)]
    colour = COLOURS[list(KINDS).index(of_kind.kind) % len(COLOURS)] if of_kind.kind in KINDS else COLOURS[0]
    axes.bar(edges[:-1], of_kind.went, widths, align="edge", color=_GONE)
    axes.bar(edges[:-1], of_kind.stayed, widths, align="edge", bottom=of_kind.went, color=colour)
    if of_kind.cut is not None:
        axes.axvline(of_kind.cut, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
    if scores.logarithmic:
        axes.set_xscale("log")
    heading = KINDS[of_kind.kind].heading if of_kind.kind in KINDS else of_kind.kind
    axes.set_ylabel(heading, fontsize=10, color=INK)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    dress(axes)
    axes.grid(False, axis="x")


def running_mean(points: Points, width: int) -> list[float | None]:
    """Mean of each point and those around it, at most `width` of them in all; None where none is known."""
    half, means = width // 2, []
    for place in range(len(points)):
        known = [each for each in points[max(0, place - half) : place + half + 1] if each is not None]
        means.append(sum(known) / len(known) if known else None)
    return means


def _plotted(points: Points) -> list[float]:
    return [math.nan if point is None else point for point in points]
