"""Energy compensation of single weights that were cut: each row gets back the energy it had.

Shape suffixes: O output features (rows), I input features (columns).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..calibration import Moments, collect_moments
from ..masks import ElementMask
from ..surgery.restoration import energy_factors, row_energy


@torch.no_grad()
def restore_element_energy(
    dense: PreTrainedModel, sparse: PreTrainedModel, mask: ElementMask, tokens_NS: Tensor
) -> None:
    """Scale each row of the masked weights of `sparse` to the energy it had, in place; zeros stay zeros.

    Statistics are of the dense model's own inputs, one forward pass.  tokens_NS: shape (N, S), int64.
    (Our reading of statistical correction, arXiv 2602.07375.)
    """
    before, after = ({path: _linear(model, path) for path in mask.kept} for model in (dense, sparse))
    moments = collect_moments(dense, before, tokens_NS)
    for path, linear in after.items():
        weight_OI, shift_O = corrected(
            before[path].weight, linear.weight, moments[path], has_bias=linear.bias is not None
        )
        linear.weight.copy_(weight_OI)
        if shift_O is not None:
            linear.bias.copy_(linear.bias + shift_O)


def _linear(model: PreTrainedModel, path: str) -> nn.Linear:
    return model.get_submodule(path)  # type: ignore[return-value]


def corrected(before_OI: Tensor, after_OI: Tensor, moments: Moments, *, has_bias: bool) -> tuple[Tensor, Tensor | None]:
    """(the pruned weight with its rows scaled, what is to be added to the bias), shapes (O, I) and (O,).

    Without a bias, r_i = √(E_i(W) / E_i(W⊙M)), the energy of the mean included, and nothing to add. A bias can give
    back the mean exactly, W μ − r ⊙ (W⊙M) μ, so that only the variance is left to r: its energies are those at μ = 0.

    before_OI: W.  after_OI: W⊙M.  Returns fp32.
    """
    mean_I, variance_I = (part.to(before_OI.device) for part in (moments.mean_I, moments.variance_I))
    share_I = torch.zeros_like(mean_I) if has_bias else mean_I
    factor_O = energy_factors(row_energy(before_OI, share_I, variance_I), row_energy(after_OI, share_I, variance_I))
    scaled_OI = after_OI.float() * factor_O[:, None]
    if not has_bias:
        return scaled_OI, None
    return scaled_OI, ((before_OI.double() - scaled_OI.double()) @ mean_I).float()
