from __future__ import annotations

import base64
import re
from html.parser import HTMLParser

import pytest

from optimum_grasprune.report.html import Cell, Picture, Report, Section, SortableTable, number_in


class Page(HTMLParser):
    """What a browser would fetch, link to and run, and the cells of its tables."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.cells: list[tuple[str, dict[str, str | None]]] = []
        self.tags: list[str] = []
        self._cell: dict[str, str | None] | None = None
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "action", "srcset")]
        if tag == "td":
            self._cell = dict(attrs)
            self.cells.append(("", self._cell))

    def handle_data(self, data: str) -> None:
        if self._cell is not None:
            self.cells[-1] = (self.cells[-1][0] + data, self._cell)

    def handle_endtag(self, tag: str) -> None:
        if tag == "td":
            self._cell = None


def report(*sections: Section, title: str = "A report") -> Report:
    return Report(title, "what it is about", [("seed", "0")], sections)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1,204", 1204.0),
        ("+0.171", 0.171),
        ("-0.5", -0.5),
        ("−0.5", -0.5),
        ("84.2%", 84.2),
        ("2.50e+12", 2.5e12),
        ("1.38 (1.34–1.43)", 1.38),
        ("inf", float("inf")),
        ("0", 0.0),
        ("", None),
        ("–", None),
        ("information", None),
        ("least squares", None),
        ("failed: 3 things", None),
    ],
)
def test_the_number_that_a_text_begins_with(text: str, number: float | None) -> None:
    assert number_in(text) == number


def test_a_table_of_text_knows_what_stands_out_and_sorts() -> None:
    table = SortableTable.of_text(["method", "loss"], [["2nd", "**1,000**"], ["dense", "inf"]], left={"method"})
    assert list(map(list, table.rows)) == [
        [Cell("2nd"), Cell("1,000", 1000.0, strong=True)],
        [Cell("dense"), Cell("inf", float("inf"))],
    ]
    page = Page(report(Section("Losses", table=table)).html())
    assert [text for text, _ in page.cells] == ["2nd", "1,000", "dense", "inf"]
    assert [attributes.get("data-sort") for _, attributes in page.cells] == [None, "1000.0", None, "Infinity"]
    assert [(attributes["class"] or "").split() for _, attributes in page.cells] == [["left"], ["strong"], ["left"], []]


def test_a_row_has_a_cell_for_each_column() -> None:
    with pytest.raises(ValueError, match="a cell for each column"):
        SortableTable(["a", "b"], [[Cell("1")]])
    with pytest.raises(ValueError, match="longer"):
        SortableTable.of_text(["a", "b"], [["1"]])


def test_nothing_in_it_is_markup_but_the_template() -> None:
    evil = '<script>alert("1")</script>'
    table = SortableTable.of_text([evil], [[evil]], note=evil)
    section = Section(evil, text=[evil], pictures=[Picture(b"<svg/>", f'" onload="{evil}')], table=table, code=evil)
    page = Page(report(section, title=evil).html())
    assert page.tags.count("script") == 1
    assert not re.search(r"<script>alert", report(section, title=evil).html())


def test_it_needs_nothing_from_outside() -> None:
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"/>'
    sections = [Section(title, pictures=[Picture(svg, "nothing")]) for title in ("One", "The 2nd one!", "Three")]
    html = report(*sections).html()
    addresses = Page(html).addresses
    assert addresses[:3] == ["#one", "#the-2nd-one", "#three"]
    assert all(base64.b64decode(each.removeprefix("data:image/svg+xml;base64,")) == svg for each in addresses[3:])
    assert "default-src 'none'" in html
    assert "http" not in html.replace("http-equiv", "")


def test_the_same_report_has_the_same_bytes() -> None:
    assert report(Section("One")).html() == report(Section("One")).html()
