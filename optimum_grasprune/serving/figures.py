"""Plots of a benchmark, dressed as those of a comparison. Needs matplotlib, the extra `plot`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from ..report.style import COLOURS, INK, MARKERS, dress, rendered, titled
from ..writing import slug, write_file
from .page import ran
from .results import Result, Spread
from .summary import spread, values_of

_SIZE = (7.2, 4.2)
_BEYOND = 1.15
"""How far an axis goes beyond its last value."""


def throughput_figure(
    lines: Mapping[str, Sequence[tuple[int, Spread]]], *, title: str, subtitle: str = "", what: str = "concurrency"
) -> Figure:
    """Output tokens per second against concurrency: a line for each checkpoint, with bars from lowest to highest.

    lines: for every checkpoint its points (concurrency, tokens per second over the repetitions), by concurrency.
    """
    figure = _empty()
    axes = figure.add_subplot()
    for place, (label, points) in enumerate(lines.items()):
        spreads = [value for _, value in points]
        below = [value.median - value.low for value in spreads]
        above = [value.high - value.median for value in spreads]
        marker, size = list(MARKERS.items())[place % len(MARKERS)]
        axes.errorbar(
            [concurrency for concurrency, _ in points],
            [value.median for value in spreads],
            yerr=[below, above],
            label=label,
            color=_colour(place),
            marker=marker,
            markersize=size,
            markeredgecolor="white",
            markeredgewidth=0.6,
            linewidth=1.6,
            elinewidth=1.1,
            capsize=3,
        )
    ticks = sorted({concurrency for points in lines.values() for concurrency, _ in points})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(0, _BEYOND * max(value.high for points in lines.values() for _, value in points))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.set_xlabel(what, fontsize=10, color=INK)
    axes.set_ylabel("output tokens per second", fontsize=10, color=INK)
    dress(axes)
    titled(axes, title, subtitle)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=9, borderaxespad=0)
    return figure


def tokens_figure(tokens: Mapping[str, float], *, title: str, subtitle: str = "") -> Figure:
    """Tokens that the KV cache holds: a bar for each checkpoint, with its number and its ratio to the first."""
    figure = _empty()
    axes = figure.add_subplot()
    labels, values = list(tokens), list(tokens.values())
    bars = axes.bar(labels, values, width=0.6, color=[_colour(place) for place in range(len(values))])
    texts = [f"{value:,.0f}\n×{value / values[0]:.2f}" for value in values]
    axes.bar_label(bars, texts, padding=3, fontsize=9, color=INK)
    axes.set_ylim(0, 1.25 * max(values))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.set_ylabel("tokens in the KV cache", fontsize=10, color=INK)
    dress(axes)
    axes.grid(False, axis="x")
    titled(axes, title, subtitle)
    return figure


def latency_figure(
    first: Mapping[str, Sequence[float]], between: Mapping[str, Sequence[float]], *, title: str, subtitle: str = ""
) -> Figure:
    """Share of requests, and of gaps between tokens, that took at most so long: a line for each checkpoint.

    first: for every checkpoint times to the first token, in ms.  between: times between tokens.
    """
    figure = _empty()
    panels = figure.subplots(1, 2, sharey=True)
    kinds = (("time to the first token, ms", first), ("time between tokens, ms", between))
    for axes, (label, values) in zip(panels, kinds, strict=True):
        for place, (name, times) in enumerate(values.items()):
            axes.ecdf(times, label=name, color=_colour(place), linewidth=1.6)
        axes.set_xscale("log")
        decades = math.log10(max(map(max, values.values())) / min(map(min, values.values())))
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 2 else (1.0,), numticks=20))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        axes.set_xlabel(label, fontsize=10, color=INK)
        dress(axes)
    panels[0].set_ylabel("share that took at most this", fontsize=10, color=INK)
    panels[0].yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:.0%}"))
    titled(panels[0], title, subtitle)
    panels[1].legend(loc="lower right", frameon=False, fontsize=9)
    return figure


def write_plots(result: Result, output: Path) -> list[Path]:
    """Write the figures of a benchmark as PNG and SVG: those that its mode has numbers for; their paths."""
    figures: dict[str, Figure] = {}
    held = {row.checkpoint: row.kv_cache_tokens for row in result.memory if row.kv_cache_tokens}
    if len(held) == len(result.memory):
        figures["kv-tokens"] = tokens_figure(held, title="Tokens that the KV cache holds", subtitle=_memory(result))
    what = ran(result)[1].at_once
    for workload in dict.fromkeys(point.workload for point in result.points):
        name, subtitle = slug(workload), _lengths(result, workload)
        lines = _throughputs(result, workload)
        if all(lines.values()):
            figures[f"throughput-{name}"] = throughput_figure(lines, title="Throughput", subtitle=subtitle, what=what)
        highest = [point for point in result.points if point.workload == workload][-1]
        times = _times(result, highest.name, "ttft"), _times(result, highest.name, "itl")
        if all(times):
            at = f"{subtitle}, {highest.concurrency} at once"
            figures[f"latency-{name}"] = latency_figure(*times, title="Latency", subtitle=at)
    return [path for name, figure in figures.items() for path in _write(figure, output, name)]


def _write(figure: Figure, output: Path, name: str) -> list[Path]:
    kinds: tuple[Literal["png"], Literal["svg"]] = ("png", "svg")
    written = []
    for kind in kinds:
        path = output / f"{name}.{kind}"
        write_file(path, rendered(figure, kind))
        written.append(path)
    return written


def _empty() -> Figure:
    figure = Figure(figsize=_SIZE, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _colour(place: int) -> str:
    return COLOURS[place % len(COLOURS)]


def _memory(result: Result) -> str:
    memory = result.options.kv_cache_bytes
    return "" if memory is None else f"the same {memory / 2**20:,.0f} MiB for every checkpoint"


def _lengths(result: Result, workload: str) -> str:
    point = next(point for point in result.points if point.workload == workload)
    prompt = point.prompt_tokens
    asked = f"prompts of {workload.rpartition(':')[0]}" if prompt is None else f"prompts of {prompt} tokens"
    return f"{asked}, {point.output_tokens} generated"


def _throughputs(result: Result, workload: str) -> dict[str, list[tuple[int, Spread]]]:
    points = [point for point in result.points if point.workload == workload]
    lines: dict[str, list[tuple[int, Spread]]] = {item.name: [] for item in result.checkpoints}
    for name, line in lines.items():
        for point in points:
            if values := values_of(result.runs, name, point.name, "output_throughput"):
                line.append((point.concurrency, spread(values.values())))
    return lines


def _times(result: Result, point: str, kind: Literal["ttft", "itl"]) -> dict[str, list[float]]:
    """The percentiles of all repetitions together: every run has as many, of as many requests."""
    times: dict[str, list[float]] = {}
    for run in result.runs:
        if run.point == point and run.percentiles is not None:
            times.setdefault(run.checkpoint, []).extend(getattr(run.percentiles, kind))
    return times
