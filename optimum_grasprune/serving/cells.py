"""What a benchmark measured, beside the cells of a comparison that its checkpoints would come from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from typing_extensions import Unpack

from ..comparison.models import widths_of
from ..comparison.results import CellResult, ComparisonResult, Served, ServedDense, Widths
from ..errors import OptionError
from ..loading import empty_model, load_config
from ..model_files import ReadAs
from .results import CheckpointFacts, Comparison, Result, read_results

METRIC = "output_throughput"
"""Of those that are measured the one that tells of a request as a whole, and that every engine gives."""


def read_benchmark(path: str, source: str, **read_as: Unpack[ReadAs]) -> Result:
    """A benchmark of checkpoints of a model. source: folder or Hub name of the dense one.

    Raises OptionError where it is of another model, or has no speed of a pruned one; CheckpointError where it is none.
    """
    benchmark = read_results(Path(path))
    if not _rows(benchmark):
        raise OptionError("benchmark", path, "has no speed of a pruned checkpoint")
    if _widths(benchmark.checkpoints[0]) != widths_of(empty_model(load_config(source, **read_as))):
        raise OptionError("benchmark", path, "is of another model: its dense one has other widths")
    return benchmark


def with_speeds(comparison: ComparisonResult, benchmark: Result) -> ComparisonResult:
    """The comparison with the tokens a second of checkpoints that have the widths of its cells, which make the speed.

    Taken is the point with most requests at once: that of a busy server.
    """
    measured = {row.point for row in _rows(benchmark)}
    point = max((each for each in benchmark.points if each.name in measured), key=lambda each: each.concurrency)
    rows = {row.checkpoint: row for row in _rows(benchmark) if row.point == point.name}
    found = {_widths(facts): rows[facts.name] for facts in benchmark.checkpoints if facts.name in rows}
    served = ServedDense(
        mode=benchmark.mode,
        point=point.name,
        device=benchmark.machine.device,
        repetitions=benchmark.options.repetitions,
        tokens_per_second=next(iter(rows.values())).dense.median,
    )
    return replace(comparison, served=served, cells=tuple(_with_speed(cell, found) for cell in comparison.cells))


def _with_speed(cell: CellResult, found: dict[Widths, Comparison]) -> CellResult:
    widths = None if cell.pruned is None else cell.pruned.widths
    row = None if widths is None else found.get(widths)
    if row is None or row.ratio is None:
        return cell
    return replace(cell, served=Served(tokens_per_second=row.pruned.median, ratio=row.ratio.median))


def _rows(benchmark: Result) -> list[Comparison]:
    return [row for row in benchmark.comparisons if row.metric == METRIC and row.ratio is not None]


def _widths(facts: CheckpointFacts) -> Widths:
    return Widths(ffn=facts.ffn_widths, kv_heads=facts.kv_heads)
