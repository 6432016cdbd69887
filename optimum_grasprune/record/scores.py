"""How the scores of units are distributed, and which of the units stayed.

Shape suffixes: U units of the whole model, K units of one kind, E edges of bins.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..units import UnitMask
from .stored import Stored

BINS = 60
_BEYOND = 0.002
"""Share of the scores at either end that stands in the outermost bin, so that a few do not make all others one bar."""
_WIDE = 1e3
"""Largest score as a multiple of the smallest positive one from which on bins are even in the logarithm."""


@dataclass(frozen=True, kw_only=True)
class ScoresOfKind(Stored):
    """Units of one kind in each bin. kind: its name.  stayed, went: how many are in the model, and how many are not.

    cut: the lowest score that would have stayed if the kind's own scores were all that counts; None where all units of
    the kind stayed, or went.
    """

    kind: str
    stayed: tuple[int, ...]
    went: tuple[int, ...]
    cut: float | None


@dataclass(frozen=True, kw_only=True)
class ScoreDistribution(Stored):
    """The scores that units were chosen by. edges: of the bins, one more than there are bins.

    logarithmic: whether the bins are even in the logarithm; scores of 0 are in the first one then.
    """

    logarithmic: bool
    edges: tuple[float, ...]
    kinds: tuple[ScoresOfKind, ...]


def score_distribution(mask: UnitMask) -> ScoreDistribution | None:
    """Of a mask's scores; None where it says nothing of them, or nothing finite."""
    if mask.scores_U is None or not (finite_U := mask.scores_U.isfinite()).any():
        return None
    values = mask.scores_U[finite_U].double()
    logarithmic = _spans_orders(values)
    edges_E = _edges(values, logarithmic)
    kinds = []
    for kind in mask.inventory.kinds:
        of_kind_U = mask.inventory.is_kind_U[kind] & finite_U
        scores_K, kept_K = mask.scores_U[of_kind_U].double(), mask.kept_U[of_kind_U]
        stayed, went = (_counts(scores_K[chosen_K], edges_E) for chosen_K in (kept_K, ~kept_K))
        kinds.append(ScoresOfKind(kind=kind.name, stayed=stayed, went=went, cut=_cut(scores_K, int(sum(went)))))
    return ScoreDistribution(logarithmic=logarithmic, edges=tuple(map(_short, edges_E.tolist())), kinds=tuple(kinds))


def _spans_orders(values: Tensor) -> bool:
    positive = values[values > 0]
    return bool((values >= 0).all()) and len(positive) > 0 and bool(positive.max() > _WIDE * positive.min())


def _edges(values: Tensor, logarithmic: bool) -> Tensor:
    """Shape (bins + 1,), ascending."""
    ordered = values.sort().values
    if logarithmic:
        ordered = ordered[ordered > 0]
    beyond = int(_BEYOND * len(ordered))
    low, high = ordered[beyond], ordered[len(ordered) - 1 - beyond]
    if logarithmic:
        return torch.logspace(float(low.log10()), float(high.log10()), BINS + 1, dtype=torch.float64, device="cpu")
    if low == high:
        low, high = low - 0.5, high + 0.5
    return torch.linspace(float(low), float(high), BINS + 1, dtype=torch.float64, device="cpu")


def _counts(scores_K: Tensor, edges_E: Tensor) -> tuple[int, ...]:
    places_K = torch.bucketize(scores_K, edges_E[1:-1].contiguous(), right=True)
    return tuple(torch.bincount(places_K, minlength=BINS).tolist())


def _cut(scores_K: Tensor, went: int) -> float | None:
    return _short(float(scores_K.sort().values[went])) if 0 < went < len(scores_K) else None


def _short(value: float) -> float:
    return float(f"{value:.6g}")
