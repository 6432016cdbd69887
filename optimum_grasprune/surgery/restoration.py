"""Making up for cut columns of an output projection in closed form. Pure tensor code.

Shape suffixes: T tokens, O output features, I input features before the cut, K those that stay.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..errors import GraspruneError

_LARGER_RIDGES = 80
"""Tenfold ridges that are tried at most: from the smallest to the largest number that fp32 holds it is 76 decades."""


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
    old_OK = weight_OI[:, kept_K]
    missing_OK = weight_OI @ cross_IK - old_OK @ gram_KK
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
        factor_KK = _factor(gram_KK.double(), ridge)
        if factor_KK is not None:
            return torch.cholesky_solve(right_OK.double().T, factor_KK).T.to(gram_KK.dtype)
        ridge = 10 * max(ridge, torch.finfo(torch.float32).tiny)
    raise GraspruneError(f"the least squares of {path} cannot be solved, not even with a ridge of {ridge:.0e}")


def _factor(gram_KK: Tensor, ridge: float) -> Tensor | None:
    """The Cholesky factor of G + δI, lower triangular; None where rounding leaves it not positive definite."""
    shifted_KK = gram_KK.clone()
    shifted_KK.diagonal().add_(ridge)
    factor_KK, failed = torch.linalg.cholesky_ex(shifted_KK)
    return None if failed else factor_KK


def missing_mean(weight_OI: Tensor, mean_I: Tensor, kept_K: Tensor) -> Tensor:
    """W · (μ ⊙ (1 − m)): what the cut columns contribute on average, shape (O,), fp32.  (FLAP, arXiv 2312.11983)

    mean_I: mean input of the dense layer, shape (I,).  kept_K: indices of the columns that stay.
    """
    cut_I = torch.ones(weight_OI.shape[1], dtype=torch.float64, device=weight_OI.device)
    cut_I[kept_K.to(weight_OI.device)] = 0
    return (weight_OI.double() @ (mean_I.to(weight_OI.device, torch.float64) * cut_I)).float()


def row_energy(weight_OI: Tensor, mean_I: Tensor, variance_I: Tensor) -> Tensor:
    """E_i = (Σ_j w_ij μ_j)² + Σ_j w_ij² σ_j², the mean square of each output if inputs are uncorrelated; shape (O,).

    (Our reading of statistical correction, arXiv 2602.07375; docs/methods.md says what is a reading and what is not.)
    """
    weight_OI = weight_OI.double()
    mean_I, variance_I = (part.to(weight_OI.device, torch.float64) for part in (mean_I, variance_I))
    return (weight_OI @ mean_I).square() + weight_OI.square() @ variance_I


def energy_factors(before_O: Tensor, after_O: Tensor, largest: float = 2.0) -> Tensor:
    """√(E before / E after) for every row, between 1 / `largest` and `largest`; 1 where nothing is left. Shape (O,)."""
    factor_O = (before_O / after_O).sqrt().clamp(1 / largest, largest)
    return torch.where(after_O > 0, factor_O, torch.ones_like(factor_O)).float()
