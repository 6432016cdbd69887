from __future__ import annotations

from io import BytesIO
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from matplotlib import image, rcParams
from matplotlib.axes import Axes

from optimum_grasprune.plots import perplexity_figure, rendered, write_plots
from tests.comparison.test_tables import RESULT

LINES = {"default": [(0.4, 30.0), (0.5, 12.0), (0.8, 6.0)], "flap": [(0.4, 80.0), (0.8, 7.0)]}


def axes_of(points: dict[str, list[tuple[float, float]]], dense: float = 5.0) -> Axes:
    (axes,) = perplexity_figure(points, dense, title="tiny: perplexity on text", subtitle="9 windows").axes
    return axes


def labels_in_view(axes: Axes) -> list[str]:
    axes.figure.canvas.draw()
    low, high = axes.get_ylim()
    ticks = zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)
    return [label.get_text() for tick, label in ticks if low <= tick <= high]


def test_axes() -> None:
    axes = axes_of(LINES)
    assert axes.get_xlabel() == "parameters kept (% of all)"
    assert axes.get_ylabel() == "perplexity (log scale)"
    assert axes.get_title(loc="left") == "tiny: perplexity on text"
    assert [text.get_text() for text in axes.texts] == ["9 windows"]
    first, second, dense = axes.get_lines()
    assert list(zip(first.get_xdata(), first.get_ydata(), strict=True)) == LINES["default"]
    assert first.get_color() != second.get_color() and first.get_marker() != second.get_marker()
    assert set(dense.get_ydata()) == {5.0} and dense.get_linestyle() == "--"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["default", "flap", "dense, 5.000"]


def test_legend_is_beside_the_axes() -> None:
    axes = axes_of(LINES)
    axes.figure.canvas.draw()
    legend, frame = axes.get_legend().get_window_extent(), axes.get_window_extent()
    assert legend.x0 >= frame.x1 and legend.x1 <= axes.figure.bbox.x1


@pytest.mark.parametrize(
    ("highest", "scale", "labels"),
    [
        (24.0, "linear", ["5", "7.5", "10", "12.5", "15", "17.5", "20", "22.5"]),
        (26.0, "log", ["5", "7", "10", "15", "20"]),
        (900.0, "log", ["5", "10", "20", "50", "100", "200", "500", "1,000"]),
        (2e6, "log", ["10", "100", "1,000", "10,000", "100,000", "1,000,000"]),
    ],
)
def test_scale_and_ticks(highest: float, scale: str, labels: list[str]) -> None:
    axes = axes_of({"flap": [(0.5, highest)]})
    assert axes.get_yscale() == scale
    assert labels_in_view(axes) == labels


def test_many_methods_look_different() -> None:
    axes = axes_of({f"method {number}": [(0.5, 6.0 + number)] for number in range(20)})
    *lines, _ = axes.get_lines()
    looks = {(line.get_color(), line.get_marker(), line.get_linestyle()) for line in lines}
    assert len(looks) == 20


def test_without_any_finished_cell() -> None:
    axes = axes_of({})
    assert len(axes.get_lines()) == 1 and axes.get_yscale() == "linear"


def test_files(tmp_path: Path) -> None:
    before = dict(rcParams)
    paths = write_plots(RESULT, tmp_path)
    assert [path.name for path in paths] == [
        "perplexity-held-out-text.png",
        "perplexity-held-out-text.svg",
        "perplexity-wiki.png",
        "perplexity-wiki.svg",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in paths)
    height, width, _ = image.imread(paths[0]).shape
    assert width > 1200 and height > 700
    assert paths[1].read_bytes().startswith(b"<?xml") and b"</svg>" in paths[1].read_bytes()
    assert dict(rcParams) == before


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_same_figure_same_bytes(kind: str) -> None:
    first, second = (rendered(perplexity_figure(LINES, 5.0, title="t"), kind) for _ in range(2))
    assert first == second
    if kind == "png":
        assert image.imread(BytesIO(first)).std() > 0.05
