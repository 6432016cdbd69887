"""The columns of a comparison's tables that say how fast checkpoints are served. Pure functions of its result."""

from __future__ import annotations

from ..evaluation.tables import NOTHING
from .results import CellResult, ComparisonResult

_CSV = ("tokens_per_second", "speedup")


def speed_columns(result: ComparisonResult) -> list[str]:
    """The columns of a table; none where no speed was measured."""
    return [] if result.served is None else ["tokens/s", "× dense"]


def speed_values(result: ComparisonResult, cell: CellResult | None) -> list[str]:
    """What stands in them for a cell, or for the dense model."""
    if result.served is None:
        return []
    if cell is None:
        return [_rate(result.served.tokens_per_second), "1.00"]
    if cell.served is None:
        return [NOTHING] * 2
    return [_rate(cell.served.tokens_per_second), f"{cell.served.ratio:.2f}"]


def speed_csv_columns(result: ComparisonResult) -> list[str]:
    """The columns of a CSV file."""
    return [] if result.served is None else list(_CSV)


def speed_csv_values(result: ComparisonResult, cell: CellResult | None) -> list[str | float]:
    """What stands in them for a cell, or for the dense model; empty where there is nothing."""
    if result.served is None:
        return []
    if cell is None:
        return [result.served.tokens_per_second, 1.0]
    return [""] * 2 if cell.served is None else [cell.served.tokens_per_second, cell.served.ratio]


def speed_note(result: ComparisonResult) -> str:
    """What a page says of those columns; nothing where there are none."""
    if (served := result.served) is None:
        return ""
    return (
        f" *Tokens/s*: output tokens a second of a checkpoint of the same widths, by `benchmark` ({served.mode}) at "
        f"{served.point} on {served.device}, the median of {served.repetitions}; *× dense*: paired in each of them."
    )


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
