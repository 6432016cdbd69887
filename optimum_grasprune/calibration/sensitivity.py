"""What removing a unit would do to the loss, to first order, token by token: one backward pass, no weight gradients.

Shape suffixes: N sequences, S sequence, I input features of an output projection, U units, K units of one group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import GraspruneError
from ..families import Family
from ..gating.gates import frozen, gated
from ..loss import next_token_loss
from ..numerics import precision_advice
from ..progress import track
from ..units import Kind, UnitInventory

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
    gradient_checkpointing: bool = False,
) -> Tensor:
    """Sum over sequences of `reduce(g)`, g_tk = Σ_channels x · ∂S/∂x at token t for unit k, divided by the tokens.

    x is the unit's part of the input of its output projection and S the summed loss of the sequence, so g is the
    derivative of S by a multiplier on the unit at that token alone.  (Fisher information, as in LLM-Pruner,
    arXiv 2305.11627, and Kwon et al., arXiv 2204.09656.)

    tokens_NS: shape (N, S).  kept_U: True for the units that are in the model, shape (units,); all by default.
    gradient_checkpointing: recompute each layer in the backward pass, so that one layer's activations are in memory.
    Returns shape (units,), fp32, on the CPU; 0 for units that are out. Raises GraspruneError when it is not finite.
    """
    total_U = torch.zeros(inventory.num_units, dtype=torch.float32, device="cpu")

    def add(key: tuple[int, Kind], x_BSI: Tensor, gradient_BSI: Tensor) -> None:
        span = inventory.slice_of(*key)
        product_SI = (x_BSI.float() * gradient_BSI.float())[0]
        total_U[span] += reduce(product_SI.unflatten(1, (span.stop - span.start, -1)).sum(2)).cpu()

    with (
        torch.enable_grad(),
        frozen(model, gradient_checkpointing=gradient_checkpointing),
        gated(model, family, inventory) as gates,
        _gradients_at(family.output_projections(model), add, model.device) as source,
    ):
        if kept_U is not None:
            gates.values_U = kept_U.to(gates.values_U)
        for tokens_S in track(tokens_NS, "sensitivity", "sequence"):
            tokens_BS = tokens_S[None].to(model.device)
            losses = next_token_loss(model(tokens_BS, use_cache=False).logits, tokens_BS, reduction="none")
            torch.autograd.grad(losses.sum(), [source], allow_unused=True)
    if not torch.isfinite(total_U).all():
        layer, kind, _ = inventory.locate(int((~torch.isfinite(total_U)).nonzero()[0]))
        raise GraspruneError(f"the gradient in layer {layer} ({kind}) is not finite; {precision_advice(model.dtype)}")
    return total_U / tokens_NS.numel()


@contextmanager
def _gradients_at(
    modules: dict[tuple[int, Kind], nn.Linear],
    see: Callable[[tuple[int, Kind], Tensor, Tensor], None],
    device: torch.device,
) -> Iterator[Tensor]:
    """While the block runs, `see(key, x, ∂S/∂x)` gets each module's input in every backward pass to what is yielded.

    The weights are fixed, so it is the number that is yielded that makes autograd record the activations.
    """
    source = torch.zeros((), dtype=torch.float32, device=device, requires_grad=True)

    def watch(key: tuple[int, Kind]) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
        return lambda _, inputs: (_Watched.apply(inputs[0], source, lambda *seen: see(key, *seen)), *inputs[1:])

    with ExitStack() as hooks:
        for key, module in modules.items():
            hooks.callback(module.register_forward_pre_hook(watch(key)).remove)
        yield source


class _Watched(torch.autograd.Function):
    """x as it is; the backward pass shows `see(x, ∂S/∂x)`.

    x is left to autograd to save, and to gradient checkpointing to recompute: who holds on to it from the forward pass,
    to ask for its gradient later, holds the inputs of all layers at once.
    """

    @staticmethod
    def forward(ctx: Any, x_BSI: Tensor, source: Tensor, see: Callable[[Tensor, Tensor], None]) -> Tensor:
        ctx.save_for_backward(x_BSI)
        ctx.see = see
        return x_BSI.view_as(x_BSI)

    @staticmethod
    def backward(ctx: Any, gradient_BSI: Tensor) -> tuple[Tensor, None, None]:
        (x_BSI,) = ctx.saved_tensors
        ctx.see(x_BSI, gradient_BSI)
        return gradient_BSI, None, None
