from __future__ import annotations

from itertools import pairwise

import pytest

pytest.importorskip("matplotlib")

from matplotlib.axes import Axes
from matplotlib.container import BarContainer

from optimum_grasprune.report import LayerShares
from optimum_grasprune.report.pictures import widths_figure
from optimum_grasprune.report.style import rendered


def heights(axes: Axes) -> list[float]:
    """Heights of the bars in colour, which stand before the pale ones."""
    container = axes.containers[1]
    assert isinstance(container, BarContainer)
    return [bar.get_height() for bar in container]


def test_a_bar_for_each_layer_and_a_mark_for_what_is_gone() -> None:
    shares = [LayerShares(0.5, 1.0), LayerShares(0.25, 0.0), LayerShares(0.75, 0.5)]
    upper, lower = widths_figure(shares, title="llama").axes
    assert heights(upper) == [50, 25, 75] and heights(lower) == [100, 0, 50]
    marks = [list(axes.lines[0].get_xdata()) for axes in (upper, lower)]  # type: ignore[arg-type]
    assert marks == [[], [1]]
    assert [axes.texts[0].get_text() for axes in (upper, lower)] == ["mean\n50 %", "mean\n50 %"]
    assert upper.texts[1].get_text() == "× marks a block that is gone"
    whole, _ = widths_figure([LayerShares(1, 1)] * 3, title="llama").axes
    assert len(whole.texts) == 1


@pytest.mark.parametrize("layers", [1, 12, 80])
def test_it_is_readable_at_any_depth(layers: int) -> None:
    figure = widths_figure([LayerShares(0.5, 0.5)] * layers, title="a model with a name of some length: its widths")
    figure.draw_without_rendering()
    width, height = figure.get_size_inches()
    assert 5.5 < width <= 14 and 4 < height < 5
    lower = figure.axes[1]
    ticks = [label for label in lower.get_xticklabels() if label.get_text()]
    assert len(ticks) <= 18
    boxes = [label.get_window_extent() for label in ticks]
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))
    inside = (figure.bbox.x0, figure.bbox.x1)
    for axes in figure.axes:
        for text in (axes.title, axes._left_title, *axes.texts):  # type: ignore[attr-defined]
            assert inside[0] <= text.get_window_extent().x0 and text.get_window_extent().x1 <= inside[1]


def test_the_same_figure_gives_the_same_bytes() -> None:
    shares = [LayerShares(0.5, 1.0), LayerShares(0.25, 0.0)]
    for kind in ("png", "svg"):
        first, second = (rendered(widths_figure(shares, title="llama"), kind) for _ in range(2))  # type: ignore[arg-type]
        assert first == second
