"""Kinds of units, as data. What is pruned together in one block is of one kind."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class UnitKind:
    """A kind of unit.

    name: in plans and records.  label: in messages, singular.  heading: in tables.
    cached_vectors: vectors of a unit's width that it adds to the KV cache per token.
    minimum_option, multiple_option: fields of `BudgetOptions` that hold how many units every block keeps at least, and
    what the number of them is a multiple of; None where a block may shrink to one unit, to any number.
    """

    name: str
    label: str
    heading: str
    cached_vectors: int = 0
    minimum_option: str | None = None
    multiple_option: str | None = None


KINDS: dict[str, UnitKind] = {}
"""The kinds by name, in the order in which they are listed to users."""


def declare(kind: UnitKind) -> UnitKind:
    """Make a kind known, so that plans that hold units of it can be read; a name can be taken once."""
    if KINDS.get(kind.name, kind) != kind:
        raise ValueError(f"a kind of units named {kind.name!r} exists already")
    KINDS[kind.name] = kind
    return kind


FFN = declare(
    UnitKind(
        "ffn", "FFN channel", "FFN channels", minimum_option="min_ffn_channels", multiple_option="ffn_multiple_of"
    ),
)
KV = declare(
    UnitKind(
        "kv",
        "KV head group",
        "KV heads",
        cached_vectors=2,
        minimum_option="min_kv_groups",
        multiple_option="kv_multiple_of",
    )
)
"""One key/value head with the query heads that read it; a key and a value are cached."""

FAST_MULTIPLE = 8
"""GPU kernels load 16 bytes at once, so many elements in 16 bits: matrices of other widths fall to slower kernels."""
