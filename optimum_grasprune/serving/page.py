"""The tables of a benchmark, for a terminal and as a Markdown page. Pure functions of its result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..writing import write_file
from .checkpoints import DENSE
from .engines import ENGINES, Engine, Mode
from .engines.registry import chosen
from .quantities import COMMON, OVERFLOW, Quantity
from .results import Comparison, Result, Spread
from .summary import bursty

Table = tuple[list[str], list[list[str]]]

_MISSING = "–"


def ran(result: Result) -> tuple[type[Engine], Mode]:
    """The engine that a result is from, and its mode; OptionError when there is no such engine or mode."""
    name, mode = chosen(result.engine, result.mode)
    engine = ENGINES.get(name)
    return engine, engine.modes[mode]


def short_table(result: Result) -> Table:
    """(columns, rows) for a terminal: of each point the quantities that matter most."""
    engine, mode = ran(result)
    rows = [
        [row.point, row.checkpoint, *_cells(row, engine)] for row in result.comparisons if row.metric in mode.headline
    ]
    return ["point", "checkpoint", "", "dense", "pruned", "pruned ÷ dense", "limit"], rows


def short_memory_table(result: Result) -> Table:
    """(columns, rows) for a terminal: the first and the most telling columns of the whole table."""
    chosen = ("checkpoint", "parameters", "weights", "FFN widths ×64", "KV tokens", "÷ dense", "ready after s")
    columns, rows = memory_table(result)
    places = [columns.index(name) for name in chosen]
    return list(chosen), [[row[place] for place in places] for row in rows]


def memory_table(result: Result) -> Table:
    """(columns, rows): what each checkpoint takes, and what its KV cache holds."""
    columns = ["checkpoint", "parameters", "weights", "FFN widths ×64", "KV bytes/token", "KV tokens"]
    columns += ["÷ dense", "computed", "sequences at once", "same memory in all", "load s", "ready after s"]
    rows = []
    for item, row in zip(result.checkpoints, result.memory, strict=True):
        rows.append(
            [
                item.name,
                f"{item.parameters:,}",
                mebibytes(item.weight_bytes),
                f"{item.ffn_widths_multiple_of['64']:.0%}",
                f"{item.kv_bytes_per_token:,}",
                _count(row.kv_cache_tokens),
                _ratio(row.kv_ratio),
                _ratio(row.kv_ratio_computed),
                _MISSING if row.max_concurrency is None else f"{row.max_concurrency:,.1f}",
                _count(row.kv_tokens_same_total),
                _spread(row.load_seconds),
                _spread(row.seconds),
            ]
        )
    return columns, rows


def point_table(result: Result, point: str) -> Table:
    """(columns, rows): every quantity at one point, for every pruned checkpoint."""
    engine, _ = ran(result)
    rows = [[row.checkpoint, *_cells(row, engine)] for row in result.comparisons if row.point == point]
    return ["checkpoint", "", "dense", "pruned", "pruned ÷ dense", "limit"], rows


def burst_lines(result: Result) -> list[str]:
    """A warning where times between tokens say nothing of the model."""
    points = bursty(result.runs)
    if not points:
        return []
    return [
        f"At {', '.join(points)} most tokens reached the client together with the one before: the server's front end "
        "had no processor to itself, or the model is faster than it. There TTFT, TPOT and ITL say little; the times in "
        "the engine and the throughputs hold."
    ]


def overflow_lines(result: Result) -> list[str]:
    """What the saved heads bought in a long-context run, a sentence for every pruned checkpoint."""
    if not ran(result)[1].overflows:
        return []
    (point,) = result.points
    rows = {(row.checkpoint, row.metric): row for row in result.comparisons}
    tokens = {row.checkpoint: row.kv_cache_tokens for row in result.memory}
    sequences = f"{point.concurrency} sequences of {(point.prompt_tokens or 0) + point.output_tokens} tokens"
    lines = []
    for name in [item.name for item in result.checkpoints[1:]]:
        served, preempted, queued = (rows[name, metric] for metric in OVERFLOW)
        lines.append(
            f"{sequences} at once in {mebibytes(result.options.kv_cache_bytes or 0)} of KV cache: the dense model has "
            f"room for {_count(tokens[DENSE])} tokens, preempted {_number(preempted.dense.median)} times and let a "
            f"request wait {_number(queued.dense.median)} ms; {name} has room for {_count(tokens[name])}, "
            f"preempted {_number(preempted.pruned.median)} times, {_number(queued.pruned.median)} ms. "
            f"Requests served per second: {_spread_of_ratio(served.ratio)} times the dense model's."
        )
    return lines


def markdown(result: Result) -> str:
    """The benchmark as a Markdown page."""
    options, machine, cache = result.options, result.machine, result.options.kv_cache_bytes
    kept = "what the engine finds" if cache is None else mebibytes(cache)
    interleaved = "all stay up and take turns at every point" if options.together else "one at a time, in turn"
    parts = [
        "# Dense beside pruned: " + ", ".join(item.name for item in result.checkpoints[1:]),
        f"{ran(result)[1].runs}. {options.repetitions} repetitions, {interleaved}; "
        f"memory of the KV cache: {kept}; seed {options.seed}.",
        f"{machine.device}, {machine.cores} cores, {mebibytes(machine.memory_bytes)} of memory. "
        + ", ".join(f"{name} {number}" for name, number in result.versions.items())
        + ".",
        *overflow_lines(result),
        *burst_lines(result),
        "## Memory",
        _as_markdown(memory_table(result)),
        _MEMORY_NOTES,
    ]
    for point in result.points:
        requests = f"{point.requests} requests, {point.concurrency} at once"
        parts += [f"## {point.name}", requests + ":", _as_markdown(point_table(result, point.name))]
    sources = "\n".join(f"- {item.name}: `{item.source}`" for item in result.checkpoints)
    parts += [_NOTES, "## Checkpoints", sources, "## Commands"]
    parts.append("```\n" + "\n".join(first_commands(result.commands) or [result.command]) + "\n```")
    return "\n\n".join(parts) + "\n"


def write_page(result: Result, output: Path) -> None:
    """Write `benchmark.md` into a folder of results."""
    write_file(output / "benchmark.md", markdown(result).encode())


def first_commands(commands: Sequence[str], limit: int = 2) -> list[str]:
    """The first commands of each kind, of the three words that tell them apart; benchmark.json has all of them."""
    seen: dict[tuple[str, ...], int] = {}
    first = []
    for command in commands:
        kind = tuple(command.split()[:3]) if " bench " in command else tuple(command.split()[:2])
        seen[kind] = seen.get(kind, 0) + 1
        if seen[kind] <= limit:
            first.append(command)
    return first


_MEMORY_NOTES = (
    "*÷ dense*: KV tokens over the dense model's, as the servers say. *computed*: the same from the shapes, at equal "
    "KV memory. *sequences at once*: of the longest that the server takes. *same memory in all*: KV tokens if the "
    "memory that smaller weights leave free went to the cache."
)
_NOTES = (
    "Medians of the repetitions. *pruned ÷ dense*: taken within each repetition, median (lowest–highest). *limit*: "
    "what that ratio cannot pass: the work of the dense model over the pruned one's, in bytes or in operations, "
    "whichever allows more; at most for throughputs, at least for times."
)


def mebibytes(count: float) -> str:
    """A number of bytes as MiB, or GiB from one on."""
    return f"{count / 2**30:,.2f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"


def _as_markdown(table: Table) -> str:
    columns, rows = table
    lines = [columns, [":---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines)


def _cells(row: Comparison, engine: type[Engine]) -> list[str]:
    """Label, dense, pruned, ratio, limit."""
    quantity: Quantity = {**COMMON, **engine.quantities}[row.metric]
    limit = _MISSING if row.limit is None else f"{'≤' if quantity.higher else '≥'} {row.limit:.2f}"
    medians = (_number(row.dense.median), _number(row.pruned.median))
    return [quantity.heading, *medians, _spread_of_ratio(row.ratio), limit]


def _spread_of_ratio(value: Spread | None) -> str:
    return _MISSING if value is None else f"{value.median:.2f} ({value.low:.2f}–{value.high:.2f})"


def _spread(value: Spread | None) -> str:
    return _MISSING if value is None else f"{value.median:.1f} ({value.low:.1f}–{value.high:.1f})"


def _ratio(value: float | None) -> str:
    return _MISSING if value is None else f"{value:.3f}"


def _count(value: float | None) -> str:
    return _MISSING if value is None else f"{value:,.0f}"


def _number(value: float) -> str:
    """About three digits, whole from 100 on."""
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
