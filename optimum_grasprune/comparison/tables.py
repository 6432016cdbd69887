"""A comparison as tables. Pure functions of what `Comparison.run` returns and comparison.json holds."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..writing import write_file, write_json

RESULT_NAME = "comparison.json"
_MISSING = "–"


def failed(result: Mapping[str, Any]) -> list[str]:
    """Names of the cells that ended in an error."""
    return [f"{cell['entry']} at {cell['keep_ratio']:g}" for cell in result["cells"] if "error" in cell]


def by_ratio(result: Mapping[str, Any]) -> dict[float, list[dict[str, Any]]]:
    """The cells grouped by keep ratio, highest first."""
    ratios = sorted({cell["keep_ratio"] for cell in result["cells"]}, reverse=True)
    return {ratio: [cell for cell in result["cells"] if cell["keep_ratio"] == ratio] for ratio in ratios}


def excess_loss(result: Mapping[str, Any], cell: Mapping[str, Any], corpus: str) -> float:
    """ln(perplexity / dense perplexity): by how many nats a token the mean loss rose."""
    return _loss(cell, corpus) - _loss(result["dense"], corpus)


def _loss(measured: Mapping[str, Any], corpus: str) -> float:
    # Results of version 0.1 hold no losses.
    return measured["loss"][corpus] if "loss" in measured else math.log(measured["perplexity"][corpus])


def points_of(result: Mapping[str, Any], corpus: str) -> dict[str, list[tuple[float, float]]]:
    """For every method, its points (share of all parameters kept, perplexity), in the order of the shares."""
    points: dict[str, list[tuple[float, float]]] = {}
    for cell in result["cells"]:
        share = cell.get("kept", {}).get("parameters")
        value = cell.get("perplexity", {}).get(corpus)  # None is beyond what a float holds, and what an axis shows
        if "error" not in cell and share is not None and value is not None:
            points.setdefault(cell["entry"], []).append((share, value))
    return {entry: sorted(found) for entry, found in points.items()}


def shown(value: float | None) -> str:
    """A perplexity with about four digits; None is one that no float holds."""
    if value is None:
        return "inf"
    if value >= 1e9:
        return f"{value:.2e}"
    return f"{value:.3f}" if value < 10 else f"{value:.2f}" if value < 1000 else f"{value:,.0f}"


def short_table(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """(columns, rows) of text for a terminal: shares kept and perplexities, the dense model first."""
    corpora = list(result["corpora"])
    rows = [["dense", "", *["100.0%"] * 2, *_perplexities(result["dense"], corpora)]]
    for ratio, cells in by_ratio(result).items():
        for cell in cells:
            values = ["failed"] * len(corpora) if "error" in cell else _perplexities(cell, corpora)
            rows.append([cell["entry"], f"{ratio:g}", *_shares(cell), *values])
    return ["method", "ratio", "kept", "KV", *corpora], rows


def full_table(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """(columns, rows) of Markdown: the dense model, then ratio by ratio, the best value of each corpus in bold."""
    corpora = list(result["corpora"])
    columns = ["method", "keep ratio", "kept of all", "KV cache"]
    columns += [title for name in corpora for title in (name, "Δ nats")] + ["compensation", "seconds"]
    dense = [text for value in _perplexities(result["dense"], corpora) for text in (value, "0")]
    rows = [["dense", "", *["100.0%"] * 2, *dense, "", ""]]
    for cells in by_ratio(result).values():
        whole = [cell for cell in cells if "error" not in cell]
        best = {name: min(_loss(cell, name) for cell in whole) for name in corpora if len(whole) > 1}
        rows += [_full_row(result, cell, best) for cell in cells]
    return columns, rows


def _full_row(result: Mapping[str, Any], cell: Mapping[str, Any], best: Mapping[str, float]) -> list[str]:
    corpora = list(result["corpora"])
    front = [cell["entry"], f"{cell['keep_ratio']:g}", *_shares(cell)]
    if "error" in cell:
        return [*front, *[_MISSING] * (2 * len(corpora)), f"failed: {cell['error']}", _MISSING]
    values = []
    for name in corpora:
        mark = "**" if best.get(name) == _loss(cell, name) else ""
        texts = (shown(cell["perplexity"][name]), f"{excess_loss(result, cell, name):+.3f}")
        values += [f"{mark}{text}{mark}" for text in texts]
    compensation = " + ".join(cell["compensation"]).replace("_", " ") or "none"
    return [*front, *values, compensation, f"{cell['seconds']:,.0f}"]


def _perplexities(measured: Mapping[str, Any], corpora: Sequence[str]) -> list[str]:
    return [shown(measured["perplexity"][name]) for name in corpora]


def _shares(cell: Mapping[str, Any]) -> list[str]:
    kept = cell.get("kept", {})
    return [_MISSING if kept.get(name) is None else f"{kept[name]:.1%}" for name in ("parameters", "kv_cache")]


def markdown(result: Mapping[str, Any]) -> str:
    """The comparison as a Markdown page: what was done, and the table, the best of each ratio in bold."""
    columns, rows = full_table(result)
    left = {"method", "compensation"}
    lines = [columns, [":---" if column in left else "---:" for column in columns], *rows]
    options = result["options"]
    corpora = "\n".join(
        f"- {name}: {_text_of(corpus['source'], corpus['split'])}, {corpus['windows']:,} windows of {corpus['window']} "
        f"tokens, sha256 `{corpus['sha256'][:16]}…`"
        for name, corpus in result["corpora"].items()
    )
    patterns = sorted({cell["recipe"]["pattern"] for cell in result["cells"]} - {"units"})
    sparse = f" Of {', '.join(patterns)}, what is not zero counts as kept: the file is no smaller." if patterns else ""
    body = "\n".join("| " + " | ".join(_escaped(text) for text in line) + " |" for line in lines)
    return (
        f"# Comparison of pruning methods on {result['model']['source']}\n\n"
        f"Calibrated on {_text_of(options['dataset'], options['dataset_split'])} with seed {options['seed']}. "
        f"Perplexity in fp32 on non-overlapping windows of:\n\n{corpora}\n\n"
        f"{body}\n\n"
        "*Kept of all*: share of all parameters, embeddings and head included. *KV cache*: share of its elements per "
        "token. *Δ nats*: rise of the mean loss over the dense model, ln(perplexity / dense). Bold: best at its ratio. "
        f"*Seconds*: of pruning; scores computed for one ratio serve the others, a choice of units serves "
        f"other compensations.{sparse}\n"
    )


def _text_of(source: str, split: str | None) -> str:
    return f"`{source}`" + (f", `{split}`" if split else "")


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def csv_text(result: Mapping[str, Any]) -> str:
    """The comparison as CSV, one line a cell, the dense model first; shares between 0 and 1, losses in nats."""
    corpora = list(result["corpora"])
    shares = ("prunable", "parameters", "kv_cache")
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(
        ["method", "keep_ratio", *(f"kept_{name}" for name in shares), "compensation", "seconds"]
        + [f"{quantity}[{name}]" for name in corpora for quantity in ("perplexity", "excess_loss")]
        + ["error"]
    )
    dense = [value for name in corpora for value in (_number(result["dense"], name), 0.0)]
    writer.writerow(["dense", 1.0, *[1.0] * len(shares), "", "", *dense, ""])
    for cells in by_ratio(result).values():
        for cell in cells:
            writer.writerow(_csv_row(result, cell, corpora, shares))
    return file.getvalue()


def _csv_row(
    result: Mapping[str, Any], cell: Mapping[str, Any], corpora: Sequence[str], shares: Sequence[str]
) -> list[Any]:
    if "error" in cell:
        return [cell["entry"], cell["keep_ratio"], *[""] * (len(shares) + 2 + 2 * len(corpora)), cell["error"]]
    kept = [cell["kept"].get(name, "") for name in shares]
    values = [value for name in corpora for value in (_number(cell, name), excess_loss(result, cell, name))]
    return [cell["entry"], cell["keep_ratio"], *kept, "+".join(cell["compensation"]), cell["seconds"], *values, ""]


def _number(measured: Mapping[str, Any], corpus: str) -> float:
    value = measured["perplexity"][corpus]
    return math.inf if value is None else value


def write_tables(result: dict[str, Any], output: Path) -> None:
    """Write comparison.json, comparison.md and comparison.csv."""
    write_json(output / RESULT_NAME, result)
    write_file(output / "comparison.md", markdown(result).encode())
    write_file(output / "comparison.csv", csv_text(result).encode())
