"""Losses of a large vocabulary with the logits of a few predictions at a time.

Of the last hidden states there are D numbers a token, of logits V, up to a hundred times as many, and a loss holds them
several times over. So the head runs on one chunk of predictions after the other, forward and backward, and what is left
of it is the gradient by the hidden states.  (As in Liger Kernel, arXiv 2410.10989, section 3.2, without its kernels.)

Shape suffixes: B batch, S sequence, D hidden, P predictions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from .loss import LossWithGradient, mixed_loss, of_predictions, wide_dtype

MOST_LOGITS = 2**26
"""Logits that are worked out at once, 256 MiB in fp32: all 512 tokens of a sequence where the vocabulary is 128 k or
less, and the loss so the plain one, bit by bit; 256 tokens of one of 256 k, so that no product of matrices is slim."""


def in_one(tokens: int, vocabulary: int) -> bool:
    """Whether the logits of so many tokens may be there at once."""
    return tokens * vocabulary <= MOST_LOGITS


def chunks(predictions: int, vocabulary: int) -> Iterator[slice]:
    """Ranges of predictions as even as can be, with at most `MOST_LOGITS` logits each; one prediction at least."""
    most = max(1, MOST_LOGITS // vocabulary)
    count = -(-predictions // most)
    bounds = [predictions * place // count for place in range(count + 1)] if count else []
    yield from map(slice, bounds, bounds[1:])


@dataclass(frozen=True)
class Predictions:
    """What a model predicts of sequences, as hidden states, out of which logits are made where they are wanted.

    hidden_BSD: the last hidden states, shape (B, S, D).  head: from them, shape (1, P, D), to logits, (1, P, V).
    """

    hidden_BSD: Tensor
    head: Callable[[Tensor], Tensor]

    @property
    def hidden_PD(self) -> Tensor:
        """The hidden states that predict a token which is there: all but each sequence's last, in rows."""
        return self.hidden_BSD[:, :-1].flatten(0, 1)

    def logits(self, hidden_PD: Tensor) -> Tensor:
        """Logits of some of those, shape (P, V)."""
        return self.head(hidden_PD[None])[0]


@torch.no_grad()
def chunked_losses(predicted: Predictions, tokens_BS: Tensor, vocabulary: int) -> Tensor:
    """`next_token_loss` of each prediction, shape (B, S - 1)."""
    hidden_PD, next_P = predicted.hidden_PD, _next(tokens_BS, predicted)
    losses = []
    for part in chunks(len(next_P), vocabulary):
        logits_PV = predicted.logits(hidden_PD[part])
        wide_PV = logits_PV.to(wide_dtype(logits_PV.dtype))
        losses.append(functional.cross_entropy(wide_PV, next_P[part], reduction="none"))
    return torch.cat(losses).view(len(tokens_BS), -1)


def chunked_loss(
    predicted: Predictions,
    tokens_BS: Tensor,
    vocabulary: int,
    *,
    teacher: Predictions | None = None,
    kl_weight: float | Tensor = 0.0,
    total: bool = False,
) -> Tensor:
    """`distillation_loss`, or without a teacher `next_token_loss`: the mean over all predictions, a scalar.

    Gradients reach the hidden states alone, so the head must be fixed.
    vocabulary: logits of a token.  total: the sum over all predictions instead.
    """
    next_P = _next(tokens_BS, predicted)
    weight_BP = of_predictions(kl_weight, tokens_BS[:, 1:], wide_dtype(predicted.hidden_BSD.dtype))
    weight_P = weight_BP.flatten().to(next_P.device)
    count = 1 if total else len(next_P)
    taught_PD = None if teacher is None else teacher.hidden_PD

    def of_chunk(part: slice, logits_PV: Tensor) -> tuple[Tensor, Tensor]:
        taught_PV = None
        if teacher is not None and taught_PD is not None:
            taught_PV = teacher.logits(taught_PD[part]).to(logits_PV.device)
        return mixed_loss(logits_PV, next_P[part], taught_PV, weight_P[part], count)

    def by_chunks(hidden_PD: Tensor) -> tuple[Tensor, Tensor]:  # each goes back through the head at once
        gradient_PD = torch.empty_like(hidden_PD)

        def run(part: slice) -> Tensor:  # when it returns, the chunk's logits are gone
            part_PD = hidden_PD[part].detach().requires_grad_()
            with torch.enable_grad():
                logits_PV = predicted.logits(part_PD)
            loss, gradient_PV = of_chunk(part, logits_PV.detach())
            (gradient_PD[part],) = torch.autograd.grad(logits_PV, part_PD, gradient_PV)
            return loss

        losses = [run(part) for part in chunks(len(next_P), vocabulary)]
        return torch.stack(losses).sum(), gradient_PD

    return LossWithGradient.apply(predicted.hidden_PD, by_chunks)


def _next(tokens_BS: Tensor, predicted: Predictions) -> Tensor:
    return tokens_BS[:, 1:].flatten().to(predicted.hidden_BSD.device)
