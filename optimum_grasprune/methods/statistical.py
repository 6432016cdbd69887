"""Statistical correction: magnitudes weighed by how much each channel varies, then energies restored.

Our reading of the abstract of arXiv 2602.07375, whose formulas were not available to us: docs/methods.md says what is
the paper's and what is ours. First-order statistics of activations only; no gradient, no second-order information.

Shape suffixes: O output features (rows), I input features (columns).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..config import BudgetOptions, GRASPConfig
from ..errors import OptionError
from ..families import linears
from ..numerics import in_fp64
from ..problem import Problem
from ..recovery import chain_names, get_stage, stages_in
from ..statistics import MOMENTS
from ..surgery.single_weights import keep_n_of_m, keep_per_row
from ..units import ElementMask, exact_ratio
from .base import Method
from .columns import column_scores
from .registry import register

KAPPA = 1.0
"""How much a channel's deviation counts: 0 is plain magnitude. Measured; the table is in docs/methods.md."""

_UNIT_BUDGETS = tuple(name for name in BudgetOptions.model_fields if name != "keep_ratio")


@register("statistical")
class Statistical(Method):
    """Units, or single weights of every linear map in the decoder layers, by magnitude times deviation."""

    source = "after arXiv 2602.07375"
    statistics = (MOMENTS,)
    allocation = "uniform"
    compensation = "energy"
    patterns = ("units", "unstructured", "2:4", "4:8")

    def check(self, config: GRASPConfig) -> None:
        """Raise OptionError also for what makes no sense where single weights are cut."""
        super().check(config)
        if config.pattern != "units":
            _check_elements(config, self.allocation_for(config))

    def score(self, problem: Problem) -> Tensor:
        """Σ of the scores of the unit's columns in its output projection, shape (units,)."""
        return column_scores(
            problem, lambda weight_OI, moments, count: unit_scores(weight_OI, moments.variance_I, count)
        )

    def select_elements(self, problem: Problem) -> ElementMask:
        """The best weights of every output row, or of every few neighbours in it."""
        maps = linears(problem.model, problem.runner.blocks)
        for path, linear in maps.items():
            _check_width(problem.config, path, linear.in_features)
        moments = problem.statistics[MOMENTS]
        return ElementMask(
            {
                path: kept_elements(
                    element_scores(problem.runner.parameter(f"{path}.weight"), moments[path].variance_I), problem.config
                ).cpu()
                for path in maps
            }
        )


def element_scores(weight_OI: Tensor, variance_I: Tensor, kappa: float | None = None) -> Tensor:
    """S_ij = |W_ij| · (σ_j / σ̄)^κ, σ̄ the mean of σ over the channels; shape (O, I), fp32.

    kappa: KAPPA by default.  A channel that never varies scores 0 (for κ > 0); where none does, S is the magnitude.
    """
    deviation_I = in_fp64(variance_I).sqrt()
    mean = deviation_I.mean()
    weight_I = (deviation_I / mean).pow(KAPPA if kappa is None else kappa) if mean > 0 else torch.ones_like(deviation_I)
    return weight_OI.float().abs() * weight_I.float().to(weight_OI.device)


def unit_scores(weight_OI: Tensor, variance_I: Tensor, count: int) -> Tensor:
    """S summed over the rows and over the columns of each of `count` units; shape (count,), fp32, on the CPU."""
    return element_scores(weight_OI, variance_I).sum(0).view(count, -1).sum(1).cpu()


def kept_elements(scores_OI: Tensor, config: GRASPConfig) -> Tensor:
    """True where the pattern and keep ratio of the configuration keep a weight, shape (O, I), bool."""
    if config.pattern == "unstructured":
        return keep_per_row(scores_OI, _kept_per_row(config, scores_OI.shape[1]))
    return keep_n_of_m(scores_OI, *_n_of_m(config.pattern))


def _kept_per_row(config: GRASPConfig, width: int) -> int:
    return math.floor(exact_ratio(config.keep_ratio) * width)


def _n_of_m(pattern: str) -> tuple[int, int]:
    n, m = map(int, pattern.split(":"))
    return n, m


def _check_elements(config: GRASPConfig, allocation: str) -> None:
    pattern = config.pattern
    for name in _UNIT_BUDGETS:
        if getattr(config, name) != BudgetOptions.model_fields[name].default:
            raise OptionError(name, getattr(config, name), f"is for whole units; pattern {pattern} cuts single weights")
    supported = [name for name in chain_names() if all(get_stage(stage).single_weights for stage in stages_in(name))]
    if config.compensation not in ("auto", *supported):
        *others, last = supported
        reason = f"pattern {pattern} supports only {', '.join(others)} and {last}"
        raise OptionError("compensation", config.compensation, reason)
    if allocation != "uniform":
        raise OptionError("allocation", allocation, f"pattern {pattern} keeps the same share of every row: uniform")
    if config.held_out:
        raise OptionError("held_out", config.held_out, f"pattern {pattern} leaves nothing to choose")
    if pattern != "unstructured":
        n, m = _n_of_m(pattern)
        if config.keep_ratio * m != n:
            raise OptionError("keep_ratio", config.keep_ratio, f"pattern {pattern} keeps exactly half of the weights")


def _check_width(config: GRASPConfig, path: str, width: int) -> None:
    if config.pattern == "unstructured":
        if not _kept_per_row(config, width):
            raise OptionError("keep_ratio", config.keep_ratio, f"keeps none of the {width} weights in a row of {path}")
    elif width % (m := _n_of_m(config.pattern)[1]):
        raise OptionError("pattern", config.pattern, f"{path} has {width} input channels, no multiple of {m}")
