"""A comparison as one HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..report.html import Picture, Report, Section, SortableTable
from ..writing import write_file
from .results import ComparisonResult
from .tables import TEXT_COLUMNS, explanation, full_table

PAGE_NAME = "comparison.html"


def page(result: ComparisonResult, pictures: Sequence[Picture] = ()) -> Report:
    """The report of a comparison. pictures: its plots."""
    name = Path(result.model.source).name
    sections = [Section("Figures", pictures=pictures)] if pictures else []
    columns, rows = full_table(result)
    sections.append(
        Section(
            "Everything measured",
            text=["A click on a column sorts by it; a third one brings the order of keep ratios back."],
            table=SortableTable.of_text(columns, rows, left=TEXT_COLUMNS, note=explanation(result).replace("*", "")),
        )
    )
    sections += [Section("What differs between the entries", table=table)] if (table := _recipes(result)) else []
    sections.append(Section("Text that was measured", table=_corpora(result)))
    options, corpus = result.options, result.options.dataset
    return Report(
        title=f"Pruning methods on {name}",
        lead=f"{len(result.cells)} pruned models beside the dense one; perplexity in {result.precision} on "
        "non-overlapping windows.",
        facts=[
            ("calibrated on", corpus + (f", {options.dataset_split}" if options.dataset_split else "")),
            ("seed", str(options.seed)),
            ("dense model", f"{result.model.source}, {result.dense.parameters:,} parameters"),
            ("weights", result.model.weights),
            ("versions", ", ".join(f"{package} {version}" for package, version in result.versions.items())),
        ],
        sections=sections,
    )


def _recipes(result: ComparisonResult) -> SortableTable | None:
    """The options in which entries differ, the keep ratio apart; None where there are none."""
    recipes = {cell.entry: cell.recipe for cell in result.cells}
    names = sorted({name for recipe in recipes.values() for name in recipe} - {"keep_ratio"})
    differ = [name for name in names if len({repr(recipe.get(name)) for recipe in recipes.values()}) > 1]
    if not differ:
        return None
    rows = [[entry, *(_shown(recipe.get(name)) for name in differ)] for entry, recipe in recipes.items()]
    return SortableTable.of_text(["method", *differ], rows, left={"method"})


def _shown(value: object) -> str:
    return "" if value is None else str(value)


def _corpora(result: ComparisonResult) -> SortableTable:
    columns = ["corpus", "source", "part", "windows", "tokens in each", "sha256"]
    rows = [
        [name, text.source, text.split or "all", f"{text.windows:,}", f"{text.window:,}", text.sha256]
        for name, text in result.corpora.items()
    ]
    return SortableTable.of_text(columns, rows, left={"corpus", "source", "part", "sha256"})


def write_page(result: ComparisonResult, output: Path, plots: Sequence[Path] = ()) -> None:
    """Write comparison.html. plots: files of its plots, of which those in SVG are put into it."""
    pictures = [
        Picture(path.read_bytes(), f"plot of {path.stem.replace('-', ' ')}") for path in plots if path.suffix == ".svg"
    ]
    write_file(output / PAGE_NAME, page(result, pictures).html().encode())
