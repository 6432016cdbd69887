from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("matplotlib")

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from optimum_grasprune.record import CheckUp, ReportNumbers, ScoreDistribution, ScoresOfKind, TrainingCurves
from optimum_grasprune.report import LayerShares
from optimum_grasprune.report.curves import running_mean, scores_figure, training_figure
from optimum_grasprune.report.pictures import PICTURES, Drawn
from optimum_grasprune.report.style import rendered


def gates(steps: int) -> TrainingCurves:
    ends = tuple(range(1, steps + 1))
    shares = tuple(step / steps for step in ends)
    readings = {"changed.ffn": (None, *shares[1:]), "kept.ffn": shares, "kept.kv": shares}
    return TrainingCurves(label="gates", steps=steps, ends=ends, loss=tuple(map(float, ends)), readings=readings)


LORA = TrainingCurves(
    label="lora",
    steps=8,
    ends=(4, 8),
    loss=(2.0, 1.0),
    check_ups=tuple(CheckUp(step=step, losses={"held_out": 3.0, "watched": 4.0 - step / 8}) for step in (0, 4, 8)),
    kept_step=8,
)
SCORES = ScoreDistribution(
    logarithmic=True,
    edges=(1.0, 10.0, 100.0),
    kinds=(
        ScoresOfKind(kind="ffn", stayed=(0, 3), went=(2, 1), cut=20.0),
        ScoresOfKind(kind="kv", stayed=(1, 1), went=(0, 0), cut=None),
    ),
)


def words(figure: Figure) -> str:
    figure.draw_without_rendering()
    axes = list(figure.axes) + [each for part in figure.subfigs for each in part.axes]  # type: ignore[attr-defined]
    return "\n".join(text.get_text() for each in axes for text in (each._left_title, *each.texts))  # type: ignore[attr-defined]


def line(axes: Axes, number: int) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in axes.lines[number].get_xydata()]  # type: ignore[union-attr]


def test_running_mean_by_hand() -> None:
    assert running_mean([1.0, 2.0, 6.0, None], 3) == [1.5, 3.0, 4.0, 6.0]
    assert running_mean([None, None], 3) == [None, None]


def test_a_training_has_its_curves() -> None:
    figure = training_figure([gates(4), LORA], "llama: ")
    first, second = figure.subfigs
    loss, kept, changed = first.axes
    assert line(loss, 0) == [(1, 1), (2, 2), (3, 3), (4, 4)]
    assert [text.get_text() for text in kept.get_legend().get_texts()] == ["FFN channels", "KV heads"]
    assert line(kept, 0) == [(1, 25), (2, 50), (3, 75), (4, 100)] and line(changed, 0)[1:] == line(kept, 0)[1:]
    (weights,) = second.axes
    assert line(weights, 0) == [(4, 2), (8, 1)] and line(weights, 2) == [(0, 4), (4, 3.5), (8, 3)]
    assert [text.get_text() for text in weights.get_legend().get_texts()] == ["trained on", "held out", "watched"]
    for text in ("llama: gates", "4 steps", "llama: lora", "8 steps in 2 points; best after 8"):
        assert text in words(figure)


def test_many_points_are_shown_by_their_mean_too() -> None:
    figure = training_figure([gates(200)], "")
    loss, _, changed = figure.subfigs[0].axes
    assert len(loss.lines) == 2 and line(loss, 1)[100] == (101, 101) and len(changed.lines) == 1


def test_a_training_of_one_step_and_one_in_which_nothing_happens() -> None:
    one = TrainingCurves(label="gates", steps=1, ends=(1,), loss=(2.0,), readings={"changed.kv": (None,)})
    still = replace(gates(200), loss=(1.0,) * 200, readings={"changed.kv": (0.0,) * 200})
    figure = training_figure([one, still], "")
    assert "1 steps" not in words(figure) and "1 step" in words(figure)


def test_scores_stand_on_each_other_with_the_cut() -> None:
    upper, lower = scores_figure(SCORES, "llama").axes
    heights = [[bar.get_height() for bar in container] for container in upper.containers]  # type: ignore[union-attr]
    assert heights == [[2, 1], [0, 3]] and upper.get_xscale() == "log"
    assert [float(x) for x in upper.lines[0].get_xdata()] == [20, 20] and not lower.lines  # type: ignore[union-attr]


def test_where_nothing_is_known_the_figure_says_so() -> None:
    old = Drawn("llama", [LayerShares(0.5, 1.0)])
    assert "nothing was kept of how it went" in words(old.figure("training"))
    assert "nothing was kept of the scores" in words(old.figure("scores"))
    pictures = old.pictures()
    assert len(pictures.shape) == 1 and not pictures.training and not pictures.scores


def test_the_same_figures_give_the_same_bytes() -> None:
    drawn = Drawn("llama", [LayerShares(0.5, 1.0)], ReportNumbers(trainings=(gates(4), LORA), scores=SCORES))
    for which in PICTURES:
        assert rendered(drawn.figure(which), "svg") == rendered(drawn.figure(which), "svg")
    pictures = drawn.pictures()
    assert (len(pictures.shape), len(pictures.training), len(pictures.scores)) == (1, 2, 1)
