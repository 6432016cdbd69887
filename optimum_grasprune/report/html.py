"""A report as one HTML file: tables that sort, figures inside it, no link to anything outside.

What is shown is text until it is written: the template escapes it, so that no name of a model or corpus is markup.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from jinja2 import Environment, StrictUndefined, Template
from typing_extensions import Self

_NUMBER = re.compile(r"[+-]?(\d[\d,]*\.?\d*(e[+-]?\d+)?|inf)\b")


@dataclass(frozen=True)
class Cell:
    """A cell of a table. number: what it sorts by; None for its text, or last of all where that is empty or a dash.

    strong: whether it stands out.
    """

    text: str
    number: float | None = None
    strong: bool = False

    @property
    def sorts_by(self) -> str | None:
        """The number as JavaScript reads it."""
        return None if self.number is None else repr(self.number).replace("inf", "Infinity")


@dataclass(frozen=True)
class SortableTable:
    """A table that sorts by a click on a column. columns: titles.  left: those that are text, set from the left.

    note: a sentence under it.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    left: frozenset[str] = frozenset()
    note: str = ""

    def __post_init__(self) -> None:
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError("every row has a cell for each column")

    @classmethod
    def of_text(
        cls, columns: Sequence[str], rows: Sequence[Sequence[str]], *, left: Collection[str] = (), note: str = ""
    ) -> Self:
        """A table from the text of a Markdown one: `**` stands out, and what begins with a number sorts by it."""
        cells = [[_cell(text, column in left) for text, column in zip(row, columns, strict=True)] for row in rows]
        return cls(columns, cells, frozenset(left), note)


@dataclass(frozen=True)
class Picture:
    """A figure. svg: its file.  says: what it shows, for those who do not see it."""

    svg: bytes
    says: str

    @property
    def source(self) -> str:
        """The file as a data URL, which can neither run scripts nor share names with another figure of the page."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg).decode("ascii")


@dataclass(frozen=True)
class Pictures:
    """The figures of a checkpoint: of its shape, one of each training, of the scores of its units."""

    shape: Sequence[Picture] = ()
    training: Sequence[Picture] = ()
    scores: Sequence[Picture] = ()


@dataclass(frozen=True)
class Section:
    """A part of a report, from top to bottom: text, pictures, a table, something to copy."""

    title: str
    text: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    table: SortableTable | None = None
    code: str = ""

    @property
    def anchor(self) -> str:
        """Its name in links within the page."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


@dataclass(frozen=True)
class Report:
    """A whole report. lead: what it is about, in a sentence or two.  facts: (name, value) at its head."""

    title: str
    lead: str
    facts: Sequence[tuple[str, str]]
    sections: Sequence[Section]

    def html(self) -> str:
        """The file; the same report gives the same bytes."""
        return _template().render(report=self)


def _cell(text: str, is_text: bool) -> Cell:
    bare = text.replace("**", "")
    return Cell(bare, None if is_text else number_in(bare), strong=bare != text)


def number_in(text: str) -> float | None:
    """The number that a text begins with, as in 1,204, +0.17, 84.2%, 1.38 (1.34–1.43) and inf; None where none does."""
    found = _NUMBER.match(text.replace("−", "-"))
    return float(found.group().replace(",", "")) if found else None


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(files(__package__).joinpath("report.html.j2").read_text(encoding="utf-8"))
