"""Output projections refitted by least squares, layer by layer.  (FASP, arXiv 2501.09412, section 3.3)

The target of every output projection is what it puts out in the dense model. Its inputs are either those that the
layers already refitted give it, as in the paper (`restore_in_sequence`), or what stays of the dense model's
(`restored_on_dense_inputs`): then one forward pass serves any number of plans.

One layer's matrices are in memory at a time, but where several keep ratios share them; what they come to is on the disk
until a model takes it.

Shape suffixes: N sequences, S sequence, T tokens, O output features, I input features before the cut, K those that
stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from typing_extensions import Self

from ..errors import GraspruneError
from ..execution import LayerStream, Runner
from ..families import Block, linear_at
from ..numerics import in_fp64
from ..progress import track
from ..statistics import TOKEN_WEIGHTS, Statistic, finite
from ..surgery import OnDisk, in_memory
from ..units import PruningPlan
from .base import Edit, WeightStage
from .reference import Linear, Reference, Settings, Trial, kept_columns
from .registry import register

if TYPE_CHECKING:
    from ..config import GRASPConfig

_LARGER_RIDGES = 80
"""Tenfold ridges that are tried at most: from the smallest to the largest number that fp32 holds it is 76 decades."""


@dataclass(frozen=True)
class Fit:
    """How least squares take massive activations.

    outliers: whether tokens of an outlying norm count too.  diagonal: what of the Gram matrix a damping is measured in.
    weighted: whether a token counts by what an error at its output would do to the loss.
    dampings: those that are tried where held-out data can choose; the first is taken where they cannot.
    """

    outliers: bool
    diagonal: Literal["median", "mean"]
    dampings: tuple[float, ...]
    weighted: bool = False

    def counted(self, x_TI: Tensor) -> Tensor:
        """True for the tokens that count, shape (T,), bool."""
        return torch.ones(len(x_TI), dtype=torch.bool, device=x_TI.device) if self.outliers else usual_tokens(x_TI)


FITS = {
    "robust": Fit(outliers=False, diagonal="median", dampings=(4.0, 0.5, 0.05, 0.005)),
    # As FASP has it, but for the ridge, which pulls towards the old weights and not towards zero.
    "plain": Fit(outliers=True, diagonal="mean", dampings=(0.01,)),
    "weighted": Fit(outliers=True, diagonal="median", dampings=(4.0, 0.5), weighted=True),
}
"""What `LeastSquaresOptions.least_squares` offers, by name."""


@register("least_squares")
@dataclass(frozen=True)
class LeastSquares(WeightStage):
    """Brings every output projection as close to what it put out as what is left of its inputs allows.

    in_sequence: whether the inputs are those that the layers already refitted give, or what stays of the dense ones.
    dampings: ridges that are tried, each in what `fit` says; the first is taken where nothing can choose.
    """

    in_sequence: bool
    fit: Fit
    dampings: tuple[float, ...]

    name = "least_squares"
    sentence = "The output projections were refitted by least squares"
    needs_sequences = True
    options = ("restoration", "least_squares", "damping")
    settings = ("damping",)
    replaces_multipliers = True

    @classmethod
    def from_config(cls, config: GRASPConfig) -> Self:
        """The stage of a configuration."""
        fit = FITS[config.least_squares]
        dampings = fit.dampings if config.damping is None else (config.damping,)
        return cls(config.restoration == "sequential", fit, dampings)

    @property
    def statistics(self) -> tuple[Statistic[Any], ...]:  # type: ignore[override]
        """What tokens count for, where that is asked for."""
        return (TOKEN_WEIGHTS,) if self.fit.weighted else ()

    def variants(self) -> tuple[Settings, ...]:
        """One for each damping."""
        return tuple({"damping": damping} for damping in self.dampings)

    def refit(self, reference: Reference, trial: Trial, pruned: PreTrainedModel) -> None:
        """Refit one model."""
        if self.in_sequence:
            runner, damping = reference.runner, trial.settings["damping"]
            tokens_NS = reference.statistic_tokens_NS
            weights = self._token_weights(reference)
            restore_in_sequence(runner, runner.beside(pruned), trial.plan, tokens_NS, damping, self.fit, weights)
        else:
            (edit,) = self.refits(reference, [trial])
            edit(pruned)

    def refits(self, reference: Reference, trials: Sequence[Trial]) -> list[Edit]:
        """On dense inputs, one forward pass serves all trials."""
        if self.in_sequence:
            return super().refits(reference, trials)
        pairs = [(trial.plan, trial.settings["damping"]) for trial in trials]
        weights = restored_from(reference.runner, pairs, self._grams(reference), self.fit)
        return [partial(take_weights, weights=of_trial) for of_trial in weights]

    def _grams(self, reference: Reference) -> Iterable[Grams]:
        """Products of dense inputs: of one layer after another, or, for several ratios, of all, gathered once."""

        def gathered() -> Iterator[Grams]:
            weights = self._token_weights(reference)
            return grams_of(reference.runner, reference.statistic_tokens_NS, self.fit, weights)

        if reference.sharing is None:
            return gathered()
        return reference.sharing.once(
            ("grams", self.fit),
            lambda: [{path: gram_II.cpu() for path, gram_II in grams.items()} for grams in gathered()],
        )

    def _token_weights(self, reference: Reference) -> Mapping[str, Tensor] | None:
        return reference.statistics[TOKEN_WEIGHTS] if self.fit.weighted else None


Weights = Mapping[str, Tensor]
"""Refitted output projections by path, each of shape (O, K), in the model's dtype, on the CPU."""

Grams = dict[str, Tensor]
"""X Xᵀ of the inputs of a layer's output projections over the tokens that count, by path, shape (I, I), fp32."""


def of_layer(runner: Runner, index: int) -> list[Block]:
    """The blocks of a layer, in the order in which they are computed."""
    return [block for block in runner.blocks if block.units.layer == index]


@torch.no_grad()
def restored_on_dense_inputs(
    dense: Runner,
    trials: Sequence[tuple[PruningPlan, float]],
    tokens_NS: Tensor,
    fit: Fit,
    token_weights: Mapping[str, Tensor] | None = None,
) -> list[Weights]:
    """Output projections refitted to the kept part of the dense inputs, for each trial of a plan with a damping.

    One forward pass of the dense model serves all trials. damping: see `restored_weight`.
    token_weights: what each token counts for, by path, shape (N, S) each; None for all alike.
    """
    return restored_from(dense, trials, grams_of(dense, tokens_NS, fit, token_weights), fit)


@torch.no_grad()
def restored_from(
    dense: Runner, trials: Sequence[tuple[PruningPlan, float]], grams: Iterable[Grams], fit: Fit
) -> list[Weights]:
    """The same from what `grams_of` returns, layer by layer."""
    results = [OnDisk() for _ in trials]
    for index, of_layer_now in enumerate(grams):
        for block in of_layer(dense, index):
            before = Linear(dense.parameter(f"{block.output}.weight"))
            gram_II = of_layer_now[block.output].to(before.weight.device)
            for (plan, damping), weights in zip(trials, results, strict=True):
                columns_K = kept_columns(plan, block, before)
                if not len(columns_K):
                    continue
                cross_IK = gram_II[:, columns_K]
                weight_OK = restored_weight(
                    before.weight, columns_K, cross_IK[columns_K], cross_IK, damping, block.output, fit.diagonal
                )
                weights[block.output] = weight_OK.to(before.weight.dtype)
    return list[Weights](results)


@torch.no_grad()
def grams_of(
    dense: Runner, tokens_NS: Tensor, fit: Fit, token_weights: Mapping[str, Tensor] | None = None
) -> Iterator[Grams]:
    """X Xᵀ of every output projection's input, of one layer after another; arguments as in `restored_on_dense_inputs`.

    What is not held on to is gone when the next layer is asked for.
    """
    with dense.stream(tokens_NS) as stream:
        for index in track(range(len(stream.layers)), "least squares", "layer"):
            outputs = {block.output: linear_at(dense.model, block.output) for block in of_layer(dense, index)}
            yield _advance_with_grams(stream, index, outputs, fit, token_weights)


def _advance_with_grams(
    stream: LayerStream,
    index: int,
    outputs: dict[str, nn.Linear],
    fit: Fit,
    token_weights: Mapping[str, Tensor] | None,
) -> Grams:
    """Take the stream through a layer; X Xᵀ of each output projection's input over the tokens that count, (I, I)."""
    grams = {
        path: torch.zeros(linear.in_features, linear.in_features, dtype=torch.float32, device=stream.device)
        for path, linear in outputs.items()
    }
    seen = dict.fromkeys(outputs, 0)

    def add(path: str, x_TI: Tensor) -> None:
        x_TI = x_TI.to(stream.device)  # layers may be on several devices
        counted_T = fit.counted(finite(x_TI, path))
        x_TI = x_TI[counted_T].float()
        weighed_TI = x_TI
        if token_weights is not None:
            weighed_TI = x_TI * token_weights[path][seen[path]].to(x_TI.device)[counted_T, None]
        grams[path].addmm_(weighed_TI.T, x_TI)
        seen[path] += 1

    stream.advance(index, outputs, add)
    return grams


@torch.no_grad()
def take_weights(pruned: PreTrainedModel, weights: Weights) -> None:
    """Put refitted output projections into a sliced model, in place."""
    for path, weight_OK in weights.items():
        linear = linear_at(pruned, path)
        with in_memory(linear):
            linear.weight.copy_(weight_OK)


@torch.no_grad()
def restore_in_sequence(
    dense: Runner,
    pruned: Runner,
    plan: PruningPlan,
    tokens_NS: Tensor,
    damping: float,
    fit: Fit,
    token_weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Refit the output projections of a sliced model, in place, to the inputs that they have in that model.

    damping: see `restored_weight`.  token_weights: as in `restored_on_dense_inputs`.
    """
    with dense.stream(tokens_NS) as reference, pruned.stream(tokens_NS) as current:
        for index in track(range(len(reference.layers)), "least squares", "layer"):
            for block in of_layer(dense, index):  # attention first: the FFN's inputs depend on it
                if not plan.group(block.address).kept:
                    continue
                before = linear_at(dense.model, block.output)
                after = linear_at(pruned.model, block.output)
                sizes = after.in_features, before.in_features
                gram_KK = torch.zeros(sizes[0], sizes[0], dtype=torch.float32, device=current.device)
                cross_IK = torch.zeros(sizes[1], sizes[0], dtype=torch.float32, device=current.device)
                for position in range(len(tokens_NS)):
                    x_TI = finite(reference.input_of(before, index, position), block.output).to(current.device)
                    z_TK = finite(current.input_of(after, index, position), block.output).to(current.device)
                    counted_T = fit.counted(x_TI) & fit.counted(z_TK)
                    x_TI, z_TK = x_TI[counted_T].float(), z_TK[counted_T].float()
                    weighed_TK = z_TK
                    if token_weights is not None:
                        weight_T = token_weights[block.output][position].to(z_TK.device)[counted_T]
                        weighed_TK = z_TK * weight_T[:, None]
                    gram_KK.addmm_(weighed_TK.T, z_TK)
                    cross_IK.addmm_(x_TI.T, weighed_TK)
                old = Linear(dense.parameter(f"{block.output}.weight"))
                columns_K = kept_columns(plan, block, old)
                with in_memory(after):
                    after.weight.copy_(
                        restored_weight(old.weight, columns_K, gram_KK, cross_IK, damping, block.output, fit.diagonal)
                    )
            reference.advance(index)
            current.advance(index)


def usual_tokens(x_TI: Tensor, limit: float = 5.0) -> Tensor:
    """True where a token's norm is at most `limit` times the median norm, shape (T,), bool.

    In a trained language model a few tokens, mostly the first, carry activations hundreds of times larger than all
    others (Sun et al., arXiv 2402.17762). A sum of squares sees nothing else.
    """
    norm_T = x_TI.float().norm(dim=1)
    return norm_T <= limit * norm_T.median()


def restored_weight(
    weight_OI: Tensor,
    kept_K: Tensor,
    gram_KK: Tensor,
    cross_IK: Tensor,
    damping: float,
    path: str = "the layer",
    diagonal: Literal["median", "mean"] = "median",
) -> Tensor:
    """The kept columns that come closest to the whole product: least squares with a ridge towards the old columns.

    W* = W_K + (W C − W_K G)(G + δI)⁻¹ minimises ‖W X − W* Z‖² + δ‖W* − W_K‖².  (FASP, arXiv 2501.09412, section 3.3)

    weight_OI: the dense weight.  kept_K: indices of the columns that stay.  gram_KK: G = Z Zᵀ.  cross_IK: C = X Zᵀ.
    X are the inputs of the dense layer, Z those of the pruned one, tokens in columns; Z may be X's kept rows.
    damping: δ in units of G's median or mean diagonal, as `diagonal` says; the median, of those that are not zero, is
    moved by no massive activation.
    path: what the projection is called in messages.
    A channel that is always zero keeps its column. Returns shape (O, K), in the dtype of gram_KK. Solved by Cholesky,
    never by an inverse. Raises GraspruneError when a number is not finite.
    """
    weight_OI = weight_OI.to(gram_KK.dtype)
    return fitted_weight(weight_OI[:, kept_K], gram_KK, weight_OI @ cross_IK, damping, path, diagonal)


def fitted_weight(
    old_OK: Tensor,
    gram_KK: Tensor,
    cross_OK: Tensor,
    damping: float,
    path: str = "the layer",
    diagonal: Literal["median", "mean"] = "median",
) -> Tensor:
    """The weight whose products with some inputs come closest to a target, with a ridge towards an old one.

    W* = W + (C − W G)(G + δI)⁻¹ minimises ‖Y − W* Z‖² + δ‖W* − W‖².

    old_OK: W.  gram_KK: G = Z Zᵀ.  cross_OK: C = Y Zᵀ, Y the targets.  All else is as in `restored_weight`.
    """
    old_OK, cross_OK = (part.to(gram_KK.device, gram_KK.dtype) for part in (old_OK, cross_OK))
    missing_OK = cross_OK - old_OK @ gram_KK
    if not (torch.isfinite(gram_KK).all() and torch.isfinite(missing_OK).all()):
        raise GraspruneError(
            f"the least squares of {path} cannot be solved: the products of its inputs, or its weights, are not finite"
        )
    diagonal_K = gram_KK.diagonal()
    alive_K = diagonal_K[diagonal_K > 0]
    if not len(alive_K):
        return old_OK
    unit = alive_K.median() if diagonal == "median" else diagonal_K.mean()
    return old_OK + _solve(gram_KK, damping * float(unit), missing_OK, path)


def _solve(gram_KK: Tensor, ridge: float, right_OK: Tensor, path: str) -> Tensor:
    """R (G + δI)⁻¹. A factorisation that fails is tried again in fp64, then with a ridge that grows tenfold."""
    factor_KK = _factor(gram_KK, ridge)
    if factor_KK is not None:
        return torch.cholesky_solve(right_OK.T, factor_KK).T
    for _ in range(_LARGER_RIDGES):
        factor_KK = _factor(in_fp64(gram_KK), ridge)
        if factor_KK is not None:
            solved_OK = torch.cholesky_solve(in_fp64(right_OK).T, factor_KK).T
            return solved_OK.to(gram_KK.dtype).to(gram_KK.device)
        ridge = 10 * max(ridge, torch.finfo(torch.float32).tiny)
    raise GraspruneError(f"the least squares of {path} cannot be solved, not even with a ridge of {ridge:.0e}")


def _factor(gram_KK: Tensor, ridge: float) -> Tensor | None:
    """The Cholesky factor of G + δI, lower triangular; None where rounding leaves it not positive definite."""
    shifted_KK = gram_KK.clone()
    shifted_KK.diagonal().add_(ridge)
    factor_KK, failed = torch.linalg.cholesky_ex(shifted_KK)
    return None if failed else factor_KK
