"""The next-token loss that gates are trained on and perplexity is measured with; mixed with a teacher's, where one is.

Shape suffixes: B batch, S sequence, P predictions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

IN_CACHE = 2**20
"""Logits that a CPU makes a loss of at once, 4 MiB in fp32: a pass over those of a whole sequence waits for memory."""


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """What losses are computed in from logits of this precision: fp32, and fp64 where they are in it already."""
    return torch.promote_types(dtype, torch.float32)


def next_token_loss(logits_BSV: Tensor, tokens_BS: Tensor, reduction: Literal["mean", "none"] = "mean") -> Tensor:
    """Cross-entropy of each token given those before it, in nats, computed in `wide_dtype`.

    Returns a scalar, or shape (B, S - 1) with reduction "none".
    """
    next_P = tokens_BS[:, 1:].flatten()
    if reduction == "mean" and logits_BSV.requires_grad and _waits_for_memory(logits_BSV):
        return LossWithGradient.apply(logits_BSV, partial(_by_rows, of_rows=partial(_next_token_loss, next_P=next_P)))
    logits_PV = logits_BSV[:, :-1].to(wide_dtype(logits_BSV.dtype)).flatten(0, 1)
    losses = functional.cross_entropy(logits_PV, next_P, reduction=reduction)
    return losses if reduction == "mean" else losses.view(tokens_BS.shape[0], -1)


def _next_token_loss(logits_PV: Tensor, part: slice, next_P: Tensor) -> tuple[Tensor, Tensor]:
    """What some predictions add to the mean, the gradient of that by their logits. next_P: of all predictions."""
    logits_PV = logits_PV.detach().requires_grad_()
    with torch.enable_grad():
        wide_PV = logits_PV.to(wide_dtype(logits_PV.dtype))
        loss = functional.cross_entropy(wide_PV, next_P[part], reduction="sum")
    share = torch.ones_like(loss) / len(next_P)
    (gradient_PV,) = torch.autograd.grad(loss, logits_PV, share)
    return loss.detach() * share, gradient_PV


def distillation_loss(logits_BSV: Tensor, tokens_BS: Tensor, teacher_BSV: Tensor, kl_weight: float | Tensor) -> Tensor:
    """(1 − w) · cross-entropy of the next token + w · KL(teacher ‖ model), means over all predictions, in nats.

    kl_weight: w, between 0 and 1, for all sequences or for each, shape (B,). Computed in fp32; of the vocabulary, only
    the gradient is kept for the backward pass, in the logits' dtype. A scalar; 0 for w = 1 where both predict the same.
    """
    next_BP = tokens_BS[:, 1:]
    weight_BP = of_predictions(kl_weight, next_BP, wide_dtype(logits_BSV.dtype))
    if not _waits_for_memory(logits_BSV):
        of_all = (next_BP, teacher_BSV[:, :-1], weight_BP, next_BP.numel())
        return LossWithGradient.apply(logits_BSV[:, :-1], lambda logits_BPV: mixed_loss(logits_BPV, *of_all))
    next_P, weight_P, taught_PV = next_BP.flatten(), weight_BP.flatten(), teacher_BSV[:, :-1].flatten(0, 1)

    def of_rows(logits_PV: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        return mixed_loss(logits_PV, next_P[part], taught_PV[part], weight_P[part], len(next_P))

    return LossWithGradient.apply(logits_BSV, partial(_by_rows, of_rows=of_rows))


def of_predictions(kl_weight: float | Tensor, next_BP: Tensor, dtype: torch.dtype) -> Tensor:
    """The share of each prediction, shape (B, P), where they are. kl_weight: as in `distillation_loss`."""
    if isinstance(kl_weight, Tensor):
        return kl_weight.to(next_BP.device, dtype)[:, None].expand(next_BP.shape)
    return torch.full_like(next_BP, kl_weight, dtype=dtype)


def mixed_loss(
    logits_PV: Tensor, next_P: Tensor, teacher_PV: Tensor | None, weight_P: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """(what some predictions add to `distillation_loss`, the gradient of that by their logits).

    next_P: the tokens that come; there may be more axes before V.  teacher_PV: None for cross-entropy alone, whatever
    the weights are.  weight_P: what `of_predictions` gives, in the shape of next_P.  count: predictions that the mean
    is over, these among them; 1 for a sum.
    The gradient, (p − (1 − w) onehot − w q) / count, falls out of the forward pass: shape (P, V), in the logits' dtype.
    """
    log_p = logits_PV.log_softmax(-1, dtype=wide_dtype(logits_PV.dtype))
    next_P1 = next_P[..., None]
    entropy_P1 = -log_p.gather(-1, next_P1)
    if teacher_PV is None:
        loss, gradient = entropy_P1.sum(), log_p.exp_()
        own_P1 = torch.ones_like(entropy_P1)
    else:
        log_q = teacher_PV.log_softmax(-1, dtype=log_p.dtype)
        q = log_q.exp()
        divergence_P1 = log_q.sub_(log_p).mul_(q).sum(-1, keepdim=True)
        taught_P1 = weight_P[..., None]
        own_P1 = 1 - taught_P1
        loss = (own_P1 * entropy_P1 + taught_P1 * divergence_P1).sum()
        gradient = log_p.exp_().sub_(q.mul_(taught_P1))
    gradient.scatter_add_(-1, next_P1, -own_P1)
    return loss / count, gradient.div_(count).to(logits_PV.dtype)


class LossWithGradient(torch.autograd.Function):
    """A loss whose gradient falls out of the forward pass, so that nothing else of it is kept for the backward pass.

    work: from what the gradient is taken by, to the loss, and the gradient, of the same shape and dtype.
    """

    @staticmethod
    def forward(ctx: Any, given: Tensor, work: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
        """The loss."""
        loss, gradient = work(given)
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        """What was kept, by what comes from above."""
        (gradient,) = ctx.saved_tensors
        return gradient * upstream.to(gradient.dtype), None


def _waits_for_memory(logits_BSV: Tensor) -> bool:
    """Whether a loss of all of them at once does: on a CPU, whose cache they do not fit. A GPU waits for each order."""
    return logits_BSV.device.type == "cpu" and logits_BSV.numel() > IN_CACHE


def _by_rows(logits_BSV: Tensor, of_rows: Callable[[Tensor, slice], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The sum of what a few predictions after the other come to; its gradient has the bits of all of them at once.

    of_rows: from the logits of some predictions, and which these are, to what they add, and the gradient of that.
    """
    gradient_BSV, losses = torch.empty_like(logits_BSV), []
    gradient_BSV[:, -1] = 0  # the last token of a sequence predicts none that is there
    predictions, together = logits_BSV.shape[1] - 1, max(1, IN_CACHE // logits_BSV.shape[2])
    for number, (logits_SV, gradient_SV) in enumerate(zip(logits_BSV, gradient_BSV, strict=True)):
        before = number * predictions
        for first in range(0, predictions, together):
            behind = min(first + together, predictions)
            part = slice(before + first, before + behind)
            loss, gradient_SV[first:behind] = of_rows(logits_SV[first:behind], part)
            losses.append(loss)
    return torch.stack(losses).sum(), gradient_BSV
