from __future__ import annotations

import itertools
from io import BytesIO
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from matplotlib import image, rcParams
from matplotlib.axes import Axes
from matplotlib.text import Annotation, Text

from optimum_grasprune.comparison.lines import apart
from optimum_grasprune.comparison.plots import CUT, perplexity_figure, write_plots
from optimum_grasprune.report.style import BASELINE, rendered
from tests.comparison.test_tables import RESULT

LINES = {"default": [(0.4, 30.0), (0.5, 12.0), (0.8, 6.0)], "flap": [(0.4, 80.0), (0.8, 7.0)]}


def axes_of(points: dict[str, list[tuple[float, float]]], dense: float = 5.0, ours: tuple[str, ...] = ()) -> Axes:
    (axes,) = perplexity_figure(points, dense, ours=ours, title="tiny: perplexity on text", subtitle="9 windows").axes
    return axes


def names(axes: Axes) -> dict[str, Annotation]:
    """The names beside lines and points, without the subtitle."""
    return {text.get_text(): text for text in axes.texts if text.get_text() != "9 windows"}


def test_axes() -> None:
    axes = axes_of(LINES)
    assert axes.get_xlabel() == "parameters kept (% of all)"
    assert axes.get_ylabel() == "perplexity ÷ dense (log scale)"
    assert axes.get_title(loc="left") == "tiny: perplexity on text"
    assert axes.get_yscale() == "log" and axes.get_ylim()[1] == CUT
    first, _, dense = axes.get_lines()
    assert list(zip(first.get_xdata(), first.get_ydata(), strict=True)) == [(0.4, 6.0), (0.5, 2.4), (0.8, 1.2)]
    assert (list(dense.get_xdata()), list(dense.get_ydata())) == ([1.0], [1.0])


def test_ours_are_bold_and_in_colour_and_baselines_grey() -> None:
    axes = axes_of({**LINES, "quick": [(0.5, 9.0)]}, ours=("default", "quick"))
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert lines["flap"].get_color() == BASELINE
    assert len({BASELINE, lines["default"].get_color(), lines["quick"].get_color()}) == 3
    assert lines["default"].get_linewidth() > 2 * lines["flap"].get_linewidth()
    weights = {name: text.get_fontweight() for name, text in names(axes).items()}
    assert weights == {"default": "bold", "quick": "bold", "flap": "normal", "dense": "normal"}


def test_names_stand_at_the_last_point_in_view() -> None:
    axes = axes_of({"a": [(0.4, 10.0), (0.8, 6.0)], "b": [(0.4, 20.0), (0.8, 50.0)]})
    assert names(axes)["a"].xy == (0.8, 1.2)
    assert names(axes)["b"].xy == (0.4, 4.0)  # at 0.8 it is beyond the cut


def test_what_is_beyond_the_cut_is_named_below() -> None:
    figure = perplexity_figure({**LINES, "random": [(0.4, 1e9), (0.8, 41.0)]}, 5.0, title="t")
    assert "random" not in names(figure.axes[0])
    assert figure.get_supxlabel() == "beyond 8 at every ratio: random"
    assert perplexity_figure(LINES, 5.0, title="t").get_supxlabel() == ""


def test_names_do_not_overlap_and_stay_in_view() -> None:
    axes = axes_of({f"method {n}": [(0.8, 6.0 + n / 100)] for n in range(12)})
    axes.figure.canvas.draw()
    beside = [text for name, text in names(axes).items() if name != "dense"]
    boxes = sorted((Text.get_window_extent(text) for text in beside), key=lambda box: box.y0)
    frame = axes.figure.bbox
    assert all(below.y1 <= above.y0 + 1 for below, above in itertools.pairwise(boxes))
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 and box.y1 <= frame.y1 for box in boxes)


@pytest.mark.parametrize(
    ("heights", "moved"),
    [
        ([], []),
        ([0.5], [0.5]),
        ([0.2, 0.8], [0.2, 0.8]),
        ([0.5, 0.5], [0.45, 0.55]),
        ([0.0, 0.01], [0.0, 0.1]),
        ([0.99, 1.0], [0.9, 1.0]),
        ([0.4, 0.5, 0.5, 0.6], [0.35, 0.45, 0.55, 0.65]),
    ],
)
def test_clusters_spread_around_their_middle(heights: list[float], moved: list[float]) -> None:
    assert apart(heights, 0.1) == pytest.approx(moved)


def test_without_any_finished_cell() -> None:
    axes = axes_of({})
    assert len(axes.get_lines()) == 1 and set(names(axes)) == {"dense"}


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


def test_a_long_subtitle_leaves_the_axes_their_width() -> None:
    def drawn(subtitle: str) -> Axes:
        points = {"default": [(0.5, 20.0), (0.8, 12.0)]}
        figure = perplexity_figure(points, 10.0, ours=["default"], title="tiny", subtitle=subtitle)
        figure.canvas.draw()
        return figure.axes[0]

    short, long = drawn("9 windows"), drawn(", ".join(f"local_task_{number}" for number in range(12)))
    assert long.get_position().width == pytest.approx(short.get_position().width, rel=0.02)
    (subtitle,) = [text for text in long.texts if "local_task_11" in text.get_text()]
    assert subtitle.get_text().count("\n") == 1
