"""What a model scored in tasks, and what of a dense model's score it kept."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from ..record import OPTIONAL, Stored
from .paired import PairedDifference, above_chance_kept, differences, paired_difference, recovery

ACCURACIES = ("acc_norm", "acc", "exact_match")
"""Shares of right answers, the one that counts first: with log-likelihoods by length of the answer where there are."""

MEAN = "mean"
"""Name of the plain average of all accuracies, as papers give it."""

Answers = Mapping[str, tuple[float, ...]]
"""For every task, the value of its metric for each document, in their order."""


@dataclass(frozen=True, kw_only=True)
class TaskScore(Stored):
    """A model's figure in a task, in a group of tasks, or over all.

    metric: as in acc_norm.  filter: how the harness got answers from what was generated; none as a rule.
    value: of the metric.  standard_error: None where the harness has none.  documents: that were asked.
    chance: what guessing gives; None where that is not known.  higher_is_better: None where the task does not say.
    """

    metric: str
    filter: str = field(default="none")
    value: float
    standard_error: float | None
    documents: int
    chance: float | None = None
    higher_is_better: bool | None = True

    @property
    def is_accuracy(self) -> bool:
        """Whether it is a share of right answers."""
        return self.metric in ACCURACIES


@dataclass(frozen=True, kw_only=True)
class AgainstDense(Stored):
    """A pruned model's score beside the dense one's.

    recovery: pruned ÷ dense.  above_chance_kept: the same of what lies above chance.  difference: pruned minus dense,
    paired by document; None where the metric is no mean over documents. All None where they have no meaning.
    """

    recovery: float | None
    above_chance_kept: float | None
    difference: PairedDifference | None = field(default=None, metadata=OPTIONAL)


def main_metric(keys: Iterable[str]) -> tuple[str, str]:
    """(metric, filter) that tables show, of those that a task has; keys: each METRIC,FILTER, as the harness has them.

    An accuracy where there is one, by the order of `ACCURACIES`, else the first; of filters `none`, or the first.
    Raises ValueError where there are none.
    """
    found = [tuple(key.split(",", 1)) for key in keys]
    metrics = [metric for metric, _ in found]
    if not found:
        raise ValueError("no metrics")
    metric = next((name for name in ACCURACIES if name in metrics), metrics[0])
    filters = [name for owner, name in found if owner == metric]
    return metric, "none" if "none" in filters else filters[0]


def mean_score(scores: Collection[TaskScore]) -> TaskScore | None:
    """The plain average of the accuracies, each task counted once however many documents it has; None below two.

    Its standard error is that of independent draws of questions.
    """
    accuracies = [score for score in scores if score.is_accuracy]
    if len(accuracies) < 2:
        return None
    errors = [score.standard_error for score in accuracies if score.standard_error is not None]
    chances = [score.chance for score in accuracies if score.chance is not None]
    whole = len(accuracies)
    return TaskScore(
        metric=MEAN,
        value=fmean(score.value for score in accuracies),
        standard_error=math.sqrt(math.fsum(error**2 for error in errors)) / whole if len(errors) == whole else None,
        documents=sum(score.documents for score in accuracies),
        chance=fmean(chances) if len(chances) == whole else None,
    )


def against_dense(
    pruned: TaskScore,
    dense: TaskScore,
    answers: Sequence[tuple[Sequence[float], Sequence[float]]] | None,
    weights: Sequence[float] | None = None,
) -> AgainstDense:
    """What a score is beside the dense model's.

    answers: of every task in it, (the dense model's, the pruned one's); None where they have none.
    weights: of the tasks, as in `paired_difference`.
    """
    better = dense.higher_is_better is True
    difference = None
    if answers:
        difference = paired_difference([differences(before, after) for before, after in answers], weights)
    return AgainstDense(
        recovery=recovery(pruned.value, dense.value) if better else None,
        above_chance_kept=above_chance_kept(pruned.value, dense.value, dense.chance) if better else None,
        difference=difference,
    )
