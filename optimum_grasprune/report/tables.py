"""Tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from ..record import Record
from ..units import FAST_MULTIPLE


@dataclass(frozen=True)
class LayerShares:
    """What a layer keeps of its FFN channels and KV heads, between 0 for a block that is gone and 1."""

    ffn: float
    kv: float


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], footer: str = "") -> None:
    """A table on standard output: the first column left-aligned, the others right-aligned."""
    table = Table(title=title, title_justify="left", caption=footer or None, caption_justify="left")
    for position, column in enumerate(columns):
        table.add_column(column, justify="right" if position else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(highlight=False).print(table)


def budget_rows(record: Record) -> list[tuple[str, str, str, str]]:
    """Rows (quantity, dense, pruned, share kept) of a record's budget; single weights that were cut are not counted."""
    dense, pruned, kept = record.budget.dense, record.budget.pruned, record.budget.kept
    quantities = (
        ("prunable parameters", dense.prunable, pruned.prunable, kept.prunable),
        ("all parameters", dense.parameters, pruned.parameters, kept.parameters),
        ("KV cache, elements per token", dense.kv_elements_per_token, pruned.kv_elements_per_token, kept.kv_cache),
    )
    return [(label, f"{before:,}", f"{after:,}", f"{share:.2%}") for label, before, after, share in quantities]


def print_summary(record: Record, title: str) -> None:
    """The budget of a pruned model, asked and met."""
    asked = record.budget.asked
    footer = "" if asked is None else f"asked: at most {asked.cost:,} prunable parameters"
    if asked is not None and asked.kv_width is not None:
        footer += f", at most {asked.kv_width:,} KV elements per token"
    if record.plan is None:
        footer += "; the weights that were cut are stored as zeros, the model has its dense size"
    elif record.plan.makes_slow_widths:
        multiple = f"multiples of {FAST_MULTIPLE}"
        footer += f"\nnot all FFN widths are {multiple}, which GPUs are fast at: --ffn-multiple-of {FAST_MULTIPLE}"
    print_table(title, ("", "dense", "pruned", "kept"), budget_rows(record), footer)
