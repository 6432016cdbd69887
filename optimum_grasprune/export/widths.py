"""The widths of a pruned model for its card: a picture made of text, and the numbers.

Text, since a card is read where no picture is loaded (a terminal, a mirror, an editor), needs no matplotlib, and is
one file: a picture beside it would be left behind when the card is copied. `inspect --plot` draws the same as a file.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..units import KINDS, PruningPlan, UnitKind

_CELLS = 20
"""Characters of a bar that is full."""


def widths_section(plan: PruningPlan) -> str:
    """The section of the card: a bar for what each layer keeps of each kind of unit, then the numbers, folded away."""
    kinds = [kind for kind in KINDS.values() if any(group.kind == kind for group in plan.groups)]
    return (
        f"## Widths\n\nWhat each layer keeps:\n\n```text\n{_picture(plan, kinds)}\n```\n\n"
        f"<details><summary>In numbers</summary>\n\n{_table(plan, kinds)}\n</details>\n\n"
    )


def bar(kept: int, count: int) -> str:
    """A share as a bar of text with its percentage. It is full, or empty, for all and for none alone."""
    cells = _part(_CELLS, kept, count)
    number = f"{_part(100, kept, count)} %" if kept else "gone"
    return f"{'█' * cells}{'░' * (_CELLS - cells)} {number:>5}"


def _part(whole: int, kept: int, count: int) -> int:
    return min(max(round(whole * kept / count), int(kept > 0)), whole - int(kept < count))


def _picture(plan: PruningPlan, kinds: Sequence[UnitKind]) -> str:
    width = len(bar(1, 1)) + 2
    lines = ["layer  " + "".join(f"{kind.heading:<{width}}" for kind in kinds)]
    for layer in range(plan.num_layers):
        counts = (_kept(plan, layer, kind) for kind in kinds)
        bars = ("" if count is None else bar(*count) for count in counts)
        lines.append(f"{layer:>5}  " + "".join(f"{text:<{width}}" for text in bars))
    return "\n".join(map(str.rstrip, lines))


def _table(plan: PruningPlan, kinds: Sequence[UnitKind]) -> str:
    heading = " | ".join(["layer", *(kind.heading for kind in kinds)])
    rows = []
    for layer in range(plan.num_layers):
        counts = (_kept(plan, layer, kind) for kind in kinds)
        cells = ("" if count is None else f"{count[0]} of {count[1]}" for count in counts)
        rows.append(f"| {layer} | {' | '.join(cells)} |\n")
    return f"| {heading} |\n|{'---:|' * (len(kinds) + 1)}\n{''.join(rows)}"


def _kept(plan: PruningPlan, layer: int, kind: UnitKind) -> tuple[int, int] | None:
    """(units kept, units before) of a kind in a layer, all its blocks together; None where it has none."""
    groups = [group for group in plan.groups if (group.layer, group.kind) == (layer, kind)]
    if not groups:
        return None
    return sum(len(group.kept) for group in groups), sum(group.count for group in groups)
