from __future__ import annotations

import copy
from pathlib import Path

from optimum_grasprune.comparison import ComparisonResult
from optimum_grasprune.comparison.page import page, write_page
from optimum_grasprune.report.html import Report, Section
from tests.comparison.test_tables import RESULT, STORED


def section(report: Report, title: str) -> Section:
    return next(each for each in report.sections if each.title == title)


def test_every_cell_is_in_it() -> None:
    table = section(page(RESULT), "Everything measured").table
    assert table is not None
    assert len(table.rows) == 1 + len(RESULT.cells)
    assert [cell.text for cell in table.rows[1] if cell.strong] == ["6.000", "+0.182"]
    assert [cell.text for cell in table.rows[2] if cell.strong] == ["105.00", "+0.049"]
    assert [cell.text for cell in table.rows[4]][-2:] == ["failed: the loss is not finite", "–"]
    assert "*" not in table.note


def test_what_differs_between_entries_is_told_and_nothing_else() -> None:
    stored = copy.deepcopy(STORED)
    for cell in stored["cells"]:
        cell["recipe"] = {"keep_ratio": cell["keep_ratio"], "method": cell["entry"], "seed": 7, "pattern": "units"}
    table = section(
        page(ComparisonResult.from_dict(stored, Path("comparison.json"))), "What differs between the entries"
    ).table
    assert table is not None
    assert list(table.columns) == ["method", "method"]
    for cell in stored["cells"]:
        cell["recipe"] = {"keep_ratio": cell["keep_ratio"], "seed": 7, "pattern": "units"}
    titles = [each.title for each in page(ComparisonResult.from_dict(stored, Path("comparison.json"))).sections]
    assert "What differs between the entries" not in titles


def test_it_is_written_with_its_plots_inside(tmp_path: Path) -> None:
    plots = [tmp_path / "perplexity-wiki.svg", tmp_path / "perplexity-wiki.png"]
    for path in plots:
        path.write_bytes(b"<svg/>")
    write_page(RESULT, tmp_path, plots)
    html = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    assert html.count("<img ") == 1
    assert 'alt="plot of perplexity wiki"' in html
    write_page(RESULT, tmp_path)
    assert "<img " not in (tmp_path / "comparison.html").read_text(encoding="utf-8")
