from __future__ import annotations

import pytest

pytest.importorskip("matplotlib")

from optimum_grasprune.report.long_context import grid, labels_of, long_context_figure
from optimum_grasprune.report.style import rendered
from tests.evaluation.test_context_tables import report


def test_panels_lines_and_maps() -> None:
    whole = report()
    places, lengths, *maps = long_context_figure(whole).axes
    dense, pruned = places.lines
    assert list(dense.get_ydata()) == pytest.approx([7.389, 2.718], abs=1e-3)  # type: ignore[arg-type]
    assert list(pruned.get_xdata()) == pytest.approx([63**0.5, (64 * 127) ** 0.5])  # type: ignore[arg-type]
    assert [list(line.lines[0].get_ydata()) for line in lengths.containers] == [[100.0], [75.0]]  # type: ignore[attr-defined]
    assert labels_of(whole) == ["dense (dense)", "pruned"]
    assert [axes.get_title(loc="left") for axes in maps] == [f"{label}: % found" for label in labels_of(whole)]
    assert grid(whole.models[1]) == [[0.5], [1.0]]
    assert [text.get_text() for text in maps[1].texts] == ["50", "100"]


@pytest.mark.parametrize("what", ["places", "needles", "both"])
def test_what_was_not_asked_for_has_no_panel(what: str) -> None:
    whole = report()
    fields = {"places": ("by_position",), "needles": ("needles",), "both": ("by_position", "needles")}[what]
    models = tuple(
        type(model)(
            model=model.model,
            parameters=1,
            perplexity=model.perplexity,
            tasks={},
            **{name: getattr(model, name) for name in fields},
        )
        for model in whole.models
    )
    figure = long_context_figure(report(models=models, needles=whole.needles if "needles" in fields else None))
    assert len(figure.axes) == {"places": 1, "needles": 3, "both": 4}[what]
    assert rendered(figure, "png")
