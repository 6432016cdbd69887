"""An evaluation with tasks as tables. Pure functions of what `report` returns."""

from __future__ import annotations

from collections.abc import Iterator

from .context_tables import Table, long_context_tables
from .paired import CONFIDENCE, PairedDifference
from .perplexity import on_windows, perplexity_of, shown
from .report import EvaluationReport, ReportedModel
from .scores import MEAN, AgainstDense, TaskScore

NOTHING = "–"


def tables(report: EvaluationReport) -> list[Table]:
    """The models side by side, or each pruned one beside the dense one; then all of them over a long context."""
    return [*_of_scores(report), *(long_context_tables(report))]


def _of_scores(report: EvaluationReport) -> list[Table]:
    if not report.beside_first:
        return [_side_by_side(report)]
    dense, *others = report.models
    return [_beside(report, dense, pruned) for pruned in others]


def _side_by_side(report: EvaluationReport) -> Table:
    columns = ("", *(model.model for model in report.models))
    rows = [
        (_label(name, score), *(_score(model.tasks[name]) for model in report.models))
        for name, score in _scores(report)
    ]
    for name in report.corpora:
        rows.append((f"perplexity on {name}", *(shown(model.perplexity[name].perplexity) for model in report.models)))
    rows.append(("parameters", *(f"{model.parameters:,}" for model in report.models)))
    return Table("Evaluation", columns, tuple(rows), _footer(report))


def _beside(report: EvaluationReport, dense: ReportedModel, pruned: ReportedModel) -> Table:
    columns = ("", "dense", "pruned", "recovery", "above chance kept", "difference", "beyond noise")
    rows = [
        (_label(name, score), _score(score), _score(pruned.tasks[name]), *_against((pruned.against_dense or {})[name]))
        for name, score in _scores(report)
    ]
    for name in report.corpora:
        before, after = dense.perplexity[name], pruned.perplexity[name]
        ratio = f"× {perplexity_of(after.loss - before.loss):.3f}"
        rows.append((f"perplexity on {name}", shown(before.perplexity), shown(after.perplexity), ratio, "", "", ""))
    rows.append(("parameters", f"{dense.parameters:,}", f"{pruned.parameters:,}", "", "", "", ""))
    return Table(f"{pruned.model} beside {dense.model}", columns, tuple(rows), _footer(report))


def _scores(report: EvaluationReport) -> Iterator[tuple[str, TaskScore]]:
    yield from report.models[0].tasks.items()


def _label(name: str, score: TaskScore) -> str:
    own = "" if score.metric == name else f" ({score.metric})"
    return name + own


def scaled(score: TaskScore) -> str:
    """A score: an accuracy in %, any other figure as it is."""
    return f"{100 * score.value:.1f}" if in_percent(score) else f"{score.value:.4g}"


def _score(score: TaskScore) -> str:
    if (error := score.standard_error) is None:
        return scaled(score)
    return f"{scaled(score)} ± {100 * error:.1f}" if in_percent(score) else f"{scaled(score)} ± {error:.2g}"


def in_percent(score: TaskScore) -> bool:
    """Whether a score is shown in %: an accuracy, or the mean of several."""
    return score.is_accuracy or score.metric == MEAN


def _against(against: AgainstDense) -> tuple[str, str, str, str]:
    return (
        share(against.recovery),
        share(against.above_chance_kept),
        interval(against.difference),
        NOTHING if against.difference is None else "yes" if against.difference.beyond_noise else "no",
    )


def share(value: float | None) -> str:
    """A share as a percentage."""
    return NOTHING if value is None else f"{value:.1%}"


def interval(difference: PairedDifference | None) -> str:
    """A difference of accuracies in points, and how far its interval reaches on both sides."""
    if difference is None:
        return NOTHING
    return f"{100 * difference.difference:+.1f} ± {50 * (difference.high - difference.low):.1f}"


def _footer(report: EvaluationReport) -> str:
    parts = []
    if report.tasks is not None:
        asked = report.tasks.tasks.values()
        shots = ", ".join(map(str, sorted({task.num_fewshot for task in asked})))
        documents = f"{sum(task.documents for task in asked):,} questions"
        parts.append(
            f"tasks: lm-eval {report.tasks.lm_eval}, {documents}, {shots}-shot, {report.backend} in {report.dtype}"
        )
        if report.beside_first:
            parts.append(
                f"± of a score: standard error; of a difference: paired by question, {CONFIDENCE:.0%} interval"
            )
    for name in report.corpora:
        parts.append(f"{name}: {on_windows([model.perplexity[name] for model in report.models])}")
    return "; ".join(parts)
