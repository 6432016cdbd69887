"""Whether two models differ beyond the noise: they answered the same questions, so it is the differences that count.

Two intervals of their own, each as wide as the luck of the draw of questions, say little: what is hard for one model is
hard for the other. The interval of the difference, question by question, leaves that out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, variance

from ..record import Stored

CONFIDENCE = 0.95
"""Of the interval: where it leaves out 0, the difference counts as beyond the noise."""

FEWEST_DIFFERING = 6
"""Questions that must be answered differently, at least: if all of five were for the worse, a sign test would still say
that this happens by chance more often than in one case of twenty, 2 · ½⁵ > 0.05."""


@dataclass(frozen=True, kw_only=True)
class PairedDifference(Stored):
    """A difference of two means over the same documents.

    difference: second minus first.  standard_error: of it.  low, high: its interval at `CONFIDENCE`.
    documents: that both were asked.  differing: for how many of them the two have another value.
    beyond_noise: whether the interval leaves out 0, and enough documents differ.
    """

    difference: float
    standard_error: float
    low: float
    high: float
    documents: int
    differing: int
    beyond_noise: bool


def differences(first: Sequence[float], second: Sequence[float]) -> list[float]:
    """Second minus first, document by document. Raises ValueError where they are of different lengths."""
    return [after - before for before, after in zip(first, second, strict=True)]


@dataclass(frozen=True)
class PairedMean:
    """The mean of paired differences. standard_error: of it; None of a single one."""

    mean: float
    standard_error: float | None

    def shown(self, form: str, scale: float = 1.0) -> str:
        """Both for a table. form: of each number, as in `.3f`; the mean with its sign.  scale: that both are times."""
        mean = f"{scale * self.mean:+{form}}"
        return mean if self.standard_error is None else f"{mean} ± {scale * self.standard_error:{form}}"


def paired_mean(values: Sequence[float]) -> PairedMean:
    """Mean and standard error of differences; raises ValueError where there are none."""
    error = math.sqrt(variance(values) / len(values)) if len(values) > 1 else None
    return PairedMean(fmean(values), error)


def paired_difference(
    strata: Sequence[Sequence[float]], weights: Sequence[float] | None = None
) -> PairedDifference | None:
    """What differences say of a weighted sum of means, as over the tasks of a group; None with fewer than two in one.

    strata: the differences of each task's documents.  weights: of each task's mean, in the sum; by default equal ones
    that sum to one, which for a single task is the plain mean.
    The interval is Student's with the degrees of freedom of Welch and Satterthwaite, for one task its documents less
    one.
    """
    if not strata or any(len(values) < 2 for values in strata):
        return None
    weights = weights or [1 / len(strata)] * len(strata)
    difference = math.fsum(weight * fmean(values) for weight, values in zip(weights, strata, strict=True))
    parts = [weight**2 * variance(values) / len(values) for weight, values in zip(weights, strata, strict=True)]
    error = math.sqrt(math.fsum(parts))
    half = error * _student(parts, [len(values) - 1 for values in strata])
    low, high = difference - half, difference + half
    differing = sum(value != 0 for values in strata for value in values)
    return PairedDifference(
        difference=difference,
        standard_error=error,
        low=low,
        high=high,
        documents=sum(map(len, strata)),
        differing=differing,
        beyond_noise=differing >= FEWEST_DIFFERING and not low <= 0 <= high,
    )


def _student(parts: Sequence[float], freedoms: Sequence[int]) -> float:
    """Standard errors on each side of the difference. parts: what each stratum adds to the squared error."""
    from scipy.stats import t  # comes with lm-eval, and takes a second

    if not (total := math.fsum(parts)):
        return 0.0
    freedom = total**2 / math.fsum(part**2 / own for part, own in zip(parts, freedoms, strict=True))
    return float(t.ppf((1 + CONFIDENCE) / 2, freedom))


def recovery(pruned: float, dense: float) -> float | None:
    """The share of the dense model's figure that is left; None where that is 0."""
    return pruned / dense if dense else None


def above_chance_kept(pruned: float, dense: float, chance: float | None) -> float | None:
    """The share left of what the dense model has above chance, negative where the pruned one is below it.

    None where nobody knows the chance level, or the dense model is not above it.
    """
    if chance is None or dense <= chance:
        return None
    return (pruned - chance) / (dense - chance)
