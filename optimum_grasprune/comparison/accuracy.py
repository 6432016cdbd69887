"""The columns of a comparison's tables that say how its models did in tasks. Pure functions of its result."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..evaluation.scores import MEAN, TaskScore
from ..evaluation.tables import NOTHING, scaled, share
from ..evaluation.tasks import AskedTasks
from .results import CellResult, ComparisonResult, PrunedResult, PrunedTasks

WITHIN_NOISE = "≈"
"""Stands after a score whose difference from the dense model's may be chance."""

WEIGHT_BYTES = "weight_bytes"
"""Names the share of bytes among those that accuracy is drawn against."""

_OF_A_SCORE = (
    "score",
    "score_stderr",
    "recovery",
    "above_chance_kept",
    "difference",
    "difference_low",
    "difference_high",
)


def headline(scores: Mapping[str, TaskScore]) -> tuple[str, TaskScore]:
    """(title, score) of the figure that sums up: the mean of the accuracies, or the first task's without one."""
    name = MEAN if MEAN in scores else next(iter(scores))
    return ("mean accuracy" if name == MEAN else name), scores[name]


def accuracy_points(result: ComparisonResult, kept: str) -> dict[str, list[tuple[float, float]]]:
    """For every method, its points (share kept, headline score), in the order of the shares.

    kept: the share, a field of `SharesKept`, or WEIGHT_BYTES.
    """
    points: dict[str, list[tuple[float, float]]] = {}
    for cell in result.cells:
        share = None if cell.pruned is None else _share_kept(result, cell.pruned, kept)
        if (tasks := _tasks_of(cell)) is not None and share is not None:
            points.setdefault(cell.entry, []).append((share, headline(tasks.scores)[1].value))
    return {entry: sorted(found) for entry, found in points.items()}


def _share_kept(result: ComparisonResult, pruned: PrunedResult, kept: str) -> float | None:
    """A share that a pruned model keeps; None where it is not known."""
    if kept == WEIGHT_BYTES:
        dense = result.dense_bytes
        return None if dense is None or pruned.weight_bytes is None else pruned.weight_bytes.pruned / dense
    return None if pruned.kept is None else getattr(pruned.kept, kept)


def headline_values(result: ComparisonResult) -> tuple[list[str], list[str], Callable[[CellResult], list[str]]]:
    """(columns, the dense model's, function for a cell's) of a short table: what sums up, and what of it is kept."""
    if result.dense.tasks is None:
        return [], [], lambda cell: []
    title, score = headline(result.dense.tasks.scores)
    name = MEAN if MEAN in result.dense.tasks.scores else title

    def of_cell(cell: CellResult) -> list[str]:
        tasks = _tasks_of(cell)
        if tasks is None:
            return [NOTHING] * 3
        against = tasks.against_dense[name]
        return [_marked(tasks, name), share(against.recovery), share(against.above_chance_kept)]

    return [title, "recovery", "above chance kept"], [scaled(score), "100.0%", "100.0%"], of_cell


def full_columns(result: ComparisonResult) -> list[str]:
    """The columns of a full table: every task, and what is kept of the figure that sums up."""
    if result.dense.tasks is None:
        return []
    return [*(name.replace("_", " ") for name in result.dense.tasks.scores), "recovery", "above chance kept"]


def full_values(result: ComparisonResult, cell: CellResult | None) -> list[str]:
    """What stands in them for a cell, or for the dense model. The best at its ratio is bold."""
    if (dense := result.dense.tasks) is None:
        return []
    if cell is None:
        return [*(scaled(score) for score in dense.scores.values()), "100.0%", "100.0%"]
    if (tasks := _tasks_of(cell)) is None:
        return [NOTHING] * (len(dense.scores) + 2)
    _, _, of_cell = headline_values(result)
    best = _best(result, cell.keep_ratio)
    texts = [
        f"**{_marked(tasks, name)}**" if name in best.get(cell.entry, ()) else _marked(tasks, name)
        for name in tasks.scores
    ]
    return [*texts, *of_cell(cell)[1:]]


def csv_columns(result: ComparisonResult) -> list[str]:
    """The columns of a CSV file."""
    if result.dense.tasks is None:
        return []
    return [f"{quantity}[{name}]" for name in result.dense.tasks.scores for quantity in _OF_A_SCORE]


def csv_values(result: ComparisonResult, cell: CellResult | None) -> list[str | float]:
    """What stands in them for a cell, or for the dense model; empty where there is nothing."""
    if (dense := result.dense.tasks) is None:
        return []
    tasks = None if cell is None else _tasks_of(cell)
    scores = dense.scores if cell is None else {} if tasks is None else tasks.scores
    values: list[str | float] = []
    for name in dense.scores:
        found: list[float | None] = [None] * len(_OF_A_SCORE)
        if name in scores:
            found[:2] = scores[name].value, scores[name].standard_error
        if tasks is not None:
            against = tasks.against_dense[name]
            found[2:4] = against.recovery, against.above_chance_kept
            if (paired := against.difference) is not None:
                found[4:] = paired.difference, paired.low, paired.high
        values += ["" if value is None else value for value in found]
    return values


def accuracy_note(result: ComparisonResult) -> str:
    """What a page says of those columns; nothing where there are none."""
    if result.tasks is None:
        return ""
    return (
        f" {questions_note(result.tasks, result.precision)} {WITHIN_NOISE}: within the noise of the dense model's, "
        "paired by question. "
        "*Recovery*, *above chance kept*: of the mean, or of the first task where there is none."
    )


def questions_note(tasks: AskedTasks, precision: str) -> str:
    """What was asked, and how the scores are given. precision: as in `ComparisonResult`."""
    questions = sum(task.documents for task in tasks.tasks.values())
    return (
        f"*Tasks*: {questions:,} questions of lm-evaluation-harness {tasks.lm_eval}, in {precision}, "
        "accuracies in %, acc_norm where a task has it."
    )


def _tasks_of(cell: CellResult) -> PrunedTasks | None:
    return None if cell.pruned is None else cell.pruned.tasks


def _marked(tasks: PrunedTasks, name: str) -> str:
    paired = tasks.against_dense[name].difference
    noisy = paired is not None and not paired.beyond_noise
    return scaled(tasks.scores[name]) + (f" {WITHIN_NOISE}" if noisy else "")


def _best(result: ComparisonResult, ratio: float) -> dict[str, set[str]]:
    """For every method, the tasks in which none is better at a ratio; nothing where there is no other one."""
    cells = {cell.entry: tasks for cell in result.by_ratio()[ratio] if (tasks := _tasks_of(cell)) is not None}
    best: dict[str, set[str]] = {entry: set() for entry in cells}
    if len(cells) < 2:
        return best
    for name in next(iter(cells.values())).scores:
        values = {entry: tasks.scores[name] for entry, tasks in cells.items()}
        upwards = next(iter(values.values())).higher_is_better is not False
        top = (max if upwards else min)(score.value for score in values.values())
        for entry, score in values.items():
            if score.value == top:
                best[entry].add(name)
    return best
