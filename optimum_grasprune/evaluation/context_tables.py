"""What models make of a long context, as tables. Pure functions of what `report` returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean

from ..record.describe import precision_of, public_name
from .needles import Recall
from .paired import differences, paired_mean
from .perplexity import on_windows, perplexity_of, shown
from .positions import RangeLoss, rise
from .report import EvaluationReport, NeedleRecord, ReportedModel


@dataclass(frozen=True)
class Table:
    """A table for a terminal."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    footer: str = ""


def long_context_tables(report: EvaluationReport) -> list[Table]:
    """Perplexity by position for each corpus; of needles those found, and what their numbers cost in nats."""
    first = report.models[0]
    found = [_by_position(report, name) for name in first.by_position or ()]
    return found if report.needles is None else [*found, *_needles(report, report.needles)]


def found_of(cells: Sequence[Recall]) -> float:
    """The share of needles that were recalled."""
    return fmean(answers(cells))


def answers(cells: Sequence[Recall]) -> list[float]:
    """1 for every needle that was recalled, 0 for every other, in one order for all models."""
    return [float(value) for cell in cells for value in cell.recalled]


def nats(cells: Sequence[Recall]) -> list[float]:
    """Minus the log-likelihood of every hidden number, in the same order."""
    return [value for cell in cells for value in cell.nats]


def _by_position(report: EvaluationReport, name: str) -> Table:
    def places(model: ReportedModel) -> tuple[RangeLoss, ...]:
        return (model.by_position or {})[name]

    dense, *others = report.models
    rows = []
    for place, start in enumerate(places(dense)):
        row = [f"{start.start:,} to {start.stop - 1:,}", shown(perplexity_of(start.loss))]
        for model in others:
            own = places(model)[place]
            row.append(shown(perplexity_of(own.loss)))
            row += [rise(own, start).shown(".3f")] if report.beside_first else []
        rows.append(tuple(row))
    footer = on_windows([model.perplexity[name] for model in report.models])
    if report.beside_first:
        footer += "; nats added to the dense model's loss ± standard error over windows"
    columns = _columns(report, "tokens before", "nats added")
    return Table(f"Perplexity on {name} by tokens before", columns, tuple(rows), footer)


def _needles(report: EvaluationReport, asked: NeedleRecord) -> Iterator[Table]:
    groups: dict[str, Callable[[Recall], bool]] = {}
    for length in asked.lengths:
        groups[f"{length:,} tokens"] = partial(_is_at, length=length)
    for depth in asked.depths:
        groups[f"depth {depth:g} %"] = partial(_is_at, depth=depth)
    groups["all"] = _is_at
    numbers = (
        f"{len(asked.depths)} seven-digit numbers in each of {asked.texts} texts a length, by greedy decoding, "
        f"{precision_of(model.dtype for model in report.models)}"
    )
    paired = "; difference ± standard error, paired by question" if report.beside_first else ""
    for title, values, form, scale in (
        ("Needles found, in % and points", answers, ".1f", 100.0),
        ("Nats that a hidden number takes", nats, ".2f", 1.0),
    ):
        rows = tuple(_needle_row(report, label, is_in, values, form, scale) for label, is_in in groups.items())
        yield Table(title, _columns(report, "", "difference"), rows, numbers + paired)


def _is_at(cell: Recall, length: int | None = None, depth: float | None = None) -> bool:
    return length in (None, cell.length) and depth in (None, cell.depth)


def _needle_row(
    report: EvaluationReport,
    label: str,
    is_in: Callable[[Recall], bool],
    values_of: Callable[[Sequence[Recall]], list[float]],
    form: str,
    scale: float,
) -> tuple[str, ...]:
    first, *others = (values_of([cell for cell in model.needles or () if is_in(cell)]) for model in report.models)
    row = [label, f"{scale * fmean(first):{form}}"]
    for values in others:
        row.append(f"{scale * fmean(values):{form}}")
        if report.beside_first:
            row.append(paired_mean(differences(first, values)).shown(form, scale))
    return tuple(row)


def _columns(report: EvaluationReport, first: str, against: str) -> tuple[str, ...]:
    dense, *others = (public_name(model.model) for model in report.models)
    columns = [first, dense]
    for name in others:
        columns += [name, against] if report.beside_first else [name]
    return tuple(columns)
