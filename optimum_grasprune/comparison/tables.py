"""A comparison as tables. Pure functions of what `Comparison.run` returns."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from ..record import SharesKept
from ..writing import write_file, write_json
from .accuracy import accuracy_note, csv_columns, csv_values, full_columns, full_values, headline_values
from .results import CellResult, ComparisonResult, Losses
from .speed import speed_columns, speed_csv_columns, speed_csv_values, speed_note, speed_values

RESULT_NAME = "comparison.json"
TEXT_COLUMNS = frozenset({"method", "compensation"})
"""Columns that hold words, and stand on the left."""
_MISSING = "–"


def points_of(result: ComparisonResult, corpus: str) -> dict[str, list[tuple[float, float]]]:
    """For every method, its points (share of all parameters kept, perplexity), in the order of the shares."""
    points: dict[str, list[tuple[float, float]]] = {}
    for cell in result.cells:
        if cell.pruned is None or cell.pruned.kept is None:
            continue
        value = cell.pruned.perplexity.get(corpus)  # None is beyond what a float holds, and what an axis shows
        if value is not None:
            points.setdefault(cell.entry, []).append((cell.pruned.kept.parameters, value))
    return {entry: sorted(found) for entry, found in points.items()}


def shown(value: float | None) -> str:
    """A perplexity with about four digits; None is one that no float holds."""
    if value is None:
        return "inf"
    if value >= 1e9:
        return f"{value:.2e}"
    return f"{value:.3f}" if value < 10 else f"{value:.2f}" if value < 1000 else f"{value:,.0f}"


def short_table(result: ComparisonResult) -> tuple[list[str], list[list[str]]]:
    """(columns, rows) of text for a terminal: shares kept and perplexities, the dense model first."""
    corpora = list(result.corpora)
    titles, dense, of_cell = headline_values(result)
    rows = [["dense", "", *["100.0%"] * 2, *_perplexities(result.dense, corpora), *dense, *speed_values(result, None)]]
    for ratio, cells in result.by_ratio().items():
        for cell in cells:
            values = ["failed"] * len(corpora) if cell.pruned is None else _perplexities(cell.pruned, corpora)
            rows.append(
                [cell.entry, f"{ratio:g}", *_shares(cell), *values, *of_cell(cell), *speed_values(result, cell)]
            )
    return ["method", "ratio", "kept", "KV", *corpora, *titles, *speed_columns(result)], rows


def full_table(result: ComparisonResult) -> tuple[list[str], list[list[str]]]:
    """(columns, rows) of Markdown: the dense model, then ratio by ratio, the best value of each corpus in bold."""
    corpora = list(result.corpora)
    columns = ["method", "keep ratio", "kept of all", "KV cache"]
    columns += [title for name in corpora for title in (name, "Δ nats")] + full_columns(result)
    columns += [*speed_columns(result), "compensation", "seconds"]
    dense = [text for value in _perplexities(result.dense, corpora) for text in (value, "0")]
    rows = [["dense", "", *["100.0%"] * 2, *dense, *full_values(result, None), *speed_values(result, None), "", ""]]
    for cells in result.by_ratio().values():
        whole = [cell.pruned for cell in cells if cell.pruned is not None]
        best = {name: min(pruned.loss_on(name) for pruned in whole) for name in corpora if len(whole) > 1}
        rows += [_full_row(result, cell, best) for cell in cells]
    return columns, rows


def _full_row(result: ComparisonResult, cell: CellResult, best: Mapping[str, float]) -> list[str]:
    corpora, pruned = list(result.corpora), cell.pruned
    front = [cell.entry, f"{cell.keep_ratio:g}", *_shares(cell)]
    back = [*full_values(result, cell), *speed_values(result, cell)]
    if pruned is None:
        return [*front, *[_MISSING] * (2 * len(corpora)), *back, f"failed: {cell.error}", _MISSING]
    values = []
    for name in corpora:
        mark = "**" if best.get(name) == pruned.loss_on(name) else ""
        texts = (shown(pruned.perplexity[name]), f"{result.excess_loss(pruned, name):+.3f}")
        values += [f"{mark}{text}{mark}" for text in texts]
    compensation = " + ".join(pruned.compensation).replace("_", " ") or "none"
    return [*front, *values, *back, compensation, f"{pruned.seconds:,.0f}"]


def _perplexities(measured: Losses, corpora: Sequence[str]) -> list[str]:
    return [shown(measured.perplexity[name]) for name in corpora]


def _shares(cell: CellResult) -> list[str]:
    if cell.pruned is None or cell.pruned.kept is None:
        return [_MISSING] * 2
    return [f"{share:.1%}" for share in (cell.pruned.kept.parameters, cell.pruned.kept.kv_cache)]


def markdown(result: ComparisonResult) -> str:
    """The comparison as a Markdown page: what was done, and the table, the best of each ratio in bold."""
    columns, rows = full_table(result)
    lines = [columns, [":---" if column in TEXT_COLUMNS else "---:" for column in columns], *rows]
    options = result.options
    corpora = "\n".join(
        f"- {name}: {_text_of(corpus.source, corpus.split)}, {corpus.windows:,} windows of {corpus.window} "
        f"tokens, sha256 `{corpus.sha256[:16]}…`"
        for name, corpus in result.corpora.items()
    )
    body = "\n".join("| " + " | ".join(_escaped(text) for text in line) + " |" for line in lines)
    return (
        f"# Comparison of pruning methods on {result.model.source}\n\n"
        f"Calibrated on {_text_of(options.dataset, options.dataset_split)} with seed {options.seed}. "
        f"Perplexity in {result.precision} on non-overlapping windows of:\n\n{corpora}\n\n"
        f"{body}\n\n"
        f"{explanation(result)}\n"
    )


def explanation(result: ComparisonResult) -> str:
    """What the columns of the full table mean, as Markdown."""
    patterns = sorted({str(cell.recipe["pattern"]) for cell in result.cells} - {"units"})
    sparse = f" Of {', '.join(patterns)}, what is not zero counts as kept: the file is no smaller." if patterns else ""
    together = (
        " Gates were trained once for all ratios of a method, and so is what makes up for the cut."
        if any(c.shared for c in result.cells)
        else ""
    )
    return (
        "*Kept of all*: share of all parameters, embeddings and head included. *KV cache*: share of its elements per "
        "token. *Δ nats*: rise of the mean loss over the dense model, ln(perplexity / dense). Bold: best at its ratio. "
        "*Seconds*: of pruning; scores computed for one ratio serve the others, a choice of units serves "
        f"other compensations.{together}{sparse}{accuracy_note(result)}{speed_note(result)}"
    )


def _text_of(source: str, split: str | None) -> str:
    return f"`{source}`" + (f", `{split}`" if split else "")


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def csv_text(result: ComparisonResult) -> str:
    """The comparison as CSV, one line a cell, the dense model first; shares between 0 and 1, losses in nats."""
    corpora, shares = list(result.corpora), [entry.name for entry in fields(SharesKept)]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(
        ["method", "keep_ratio", *(f"kept_{name}" for name in shares), "weight_bytes", "compensation", "seconds"]
        + [f"{quantity}[{name}]" for name in corpora for quantity in ("perplexity", "excess_loss")]
        + [*csv_columns(result), *speed_csv_columns(result), "error"]
    )
    dense = [value for name in corpora for value in (_number(result.dense, name), 0.0)]
    size = "" if result.dense_bytes is None else result.dense_bytes
    measured = [*csv_values(result, None), *speed_csv_values(result, None)]
    writer.writerow(["dense", 1.0, *[1.0] * len(shares), size, "", "", *dense, *measured, ""])
    for cells in result.by_ratio().values():
        writer.writerows(_csv_row(result, cell, shares) for cell in cells)
    return file.getvalue()


def _csv_row(result: ComparisonResult, cell: CellResult, shares: Sequence[str]) -> list[str | float]:
    corpora, pruned = list(result.corpora), cell.pruned
    measured = [*csv_values(result, cell), *speed_csv_values(result, cell)]
    if pruned is None:
        empty = [""] * (len(shares) + 3 + 2 * len(corpora))
        return [cell.entry, cell.keep_ratio, *empty, *measured, cell.error or ""]
    kept = [getattr(pruned.kept, name, "") for name in shares]
    values = [value for name in corpora for value in (_number(pruned, name), result.excess_loss(pruned, name))]
    size = "" if pruned.weight_bytes is None else pruned.weight_bytes.pruned
    done = [size, "+".join(pruned.compensation), pruned.seconds]
    return [cell.entry, cell.keep_ratio, *kept, *done, *values, *measured, ""]


def _number(measured: Losses, corpus: str) -> float:
    value = measured.perplexity[corpus]
    return math.inf if value is None else value


def write_tables(result: ComparisonResult, output: Path) -> None:
    """Write comparison.json, comparison.md and comparison.csv."""
    write_json(output / RESULT_NAME, result.to_dict())
    write_file(output / "comparison.md", markdown(result).encode())
    write_file(output / "comparison.csv", csv_text(result).encode())
