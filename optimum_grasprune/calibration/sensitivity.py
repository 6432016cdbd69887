"""What removing a unit would do to the loss, to first order, token by token: one backward pass, no weight gradients.

Shape suffixes: N sequences, S sequence, I input features of an output projection, U units, K units of one group.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..errors import GraspruneError
from ..families import Family
from ..gating.gates import Gates, frozen, gated
from ..loss import next_token_loss
from ..units import Kind, UnitInventory
from .collect import inputs_of

Reduction = Callable[[Tensor], Tensor]
"""From the sensitivities of one sequence, shape (S, K), to one number per unit, shape (K,)."""


def squared_per_token(sensitivity_SK: Tensor) -> Tensor:
    """Σ_t g_t²: the diagonal of the empirical Fisher matrix with each token as a sample, shape (K,)."""
    return sensitivity_SK.square().sum(0)


def squared_per_sequence(sensitivity_SK: Tensor) -> Tensor:
    """(Σ_t g_t)²: the same with each sequence as a sample, shape (K,)."""
    return sensitivity_SK.sum(0).square()


def sensitivity(
    model: PreTrainedModel,
    family: Family,
    inventory: UnitInventory,
    tokens_NS: Tensor,
    reduce: Reduction,
    *,
    kept_U: Tensor | None = None,
) -> Tensor:
    """Sum over sequences of `reduce(g)`, g_tk = Σ_channels x · ∂S/∂x at token t for unit k, divided by the tokens.

    x is the unit's part of the input of its output projection and S the summed loss of the sequence, so g is the
    derivative of S by a multiplier on the unit at that token alone.  (Fisher information, as in LLM-Pruner,
    arXiv 2305.11627, and Kwon et al., arXiv 2204.09656.)

    tokens_NS: shape (N, S).  kept_U: True for the units that are in the model, shape (units,); all by default.
    Returns shape (units,), fp32, on the CPU; 0 for units that are out. Raises GraspruneError when it is not finite.
    """
    modules = family.output_projections(model)
    inputs: dict[tuple[int, Kind], Tensor] = {}

    def see(key: tuple[int, Kind], x_BSI: Tensor) -> None:
        inputs[key] = x_BSI

    total_U = torch.zeros(inventory.num_units)
    with frozen(model), gated(model, family, inventory) as gates, inputs_of(modules, see):
        for tokens_S in tqdm(tokens_NS, desc="sensitivity", unit="sequence"):
            _require_gradients(gates, kept_U)
            tokens_BS = tokens_S[None].to(model.device)
            losses = next_token_loss(model(tokens_BS, use_cache=False).logits, tokens_BS, reduction="none")
            gradients = torch.autograd.grad(losses.sum(), list(inputs.values()))
            for (layer, kind), gradient_BSI in zip(inputs, gradients, strict=True):
                span = inventory.slice_of(layer, kind)
                product_SI = (inputs[layer, kind].detach().float() * gradient_BSI.float())[0]
                total_U[span] += reduce(product_SI.unflatten(1, (span.stop - span.start, -1)).sum(2)).cpu()
    if not torch.isfinite(total_U).all():
        layer, kind, _ = inventory.locate(int((~torch.isfinite(total_U)).nonzero()[0]))
        raise GraspruneError(f"the gradient in layer {layer} ({kind}) is not finite; try --dtype float32")
    return total_U / tokens_NS.numel()


def _require_gradients(gates: Gates, kept_U: Tensor | None) -> None:
    # The weights are fixed, so it is the multipliers that make autograd record the activations.
    values_U = torch.ones_like(gates.values_U) if kept_U is None else kept_U.to(gates.values_U)
    gates.values_U = values_U.requires_grad_()
