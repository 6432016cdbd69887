"""The dense model as a teacher: next-token loss mixed with the divergence from what the dense model predicts.

Shape suffixes: N sequences, B batch, S sequence, V vocabulary, D hidden, P predictions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Teacher:
    """What the dense model makes of the sequences that something is trained on: read once, looked up at every step.

    hidden_NSD: its last hidden states, on the CPU: D numbers a token, where logits would be V.
    head: from hidden states, shape (B, S, D), to logits, where the dense model is.
    """

    hidden_NSD: Tensor
    head: Callable[[Tensor], Tensor]

    def logits(self, indices_B: Tensor) -> Tensor:
        """Logits of the sequences at these places, shape (B, S, V)."""
        return self.head(self.hidden_NSD[indices_B])


@dataclass(frozen=True)
class LiveTeacher:
    """The same, run when it is asked: as much work where each sequence is seen once, and nothing to keep.

    tokens_NS: the sequences, int64.  model: from tokens, shape (B, S), to logits.
    """

    tokens_NS: Tensor
    model: Callable[[Tensor], Tensor]

    def logits(self, indices_B: Tensor) -> Tensor:
        """Logits of the sequences at these places, shape (B, S, V)."""
        return self.model(self.tokens_NS[indices_B])


class Teaches(Protocol):
    """What has a teacher: a runner, or what remembers what one said."""

    def teacher(self, tokens_NS: Tensor, *, live: bool = False) -> Teacher | LiveTeacher:
        """See `Runner.teacher`."""


class RememberedTeacher:
    """The dense model as the teacher of several trainings on the same text: it reads every sequence once.

    Hidden states of all that was read are held, on the CPU; a teacher that is live is none that is remembered.
    """

    def __init__(self, dense: Teaches) -> None:
        self.dense = dense
        self._hidden: dict[bytes, Tensor] = {}
        self._head: Callable[[Tensor], Tensor] | None = None

    def teacher(self, tokens_NS: Tensor, *, live: bool = False) -> Teacher | LiveTeacher:
        """See `Runner.teacher`."""
        if live:
            return self.dense.teacher(tokens_NS, live=True)
        rows = [tokens_S.numpy().tobytes() for tokens_S in tokens_NS.cpu()]
        unread = {row: place for place, row in enumerate(rows) if row not in self._hidden}
        if unread:
            read = self.dense.teacher(tokens_NS[list(unread.values())])
            if isinstance(read, LiveTeacher):
                raise TypeError("a teacher that is not to be live is live")
            self._hidden.update(zip(unread, read.hidden_NSD, strict=True))
            self._head = read.head
        if self._head is None:
            raise ValueError("there are no sequences to teach")
        return Teacher(torch.stack([self._hidden[row] for row in rows]), self._head)


def distillation_loss(logits_BSV: Tensor, tokens_BS: Tensor, teacher_BSV: Tensor, kl_weight: float) -> Tensor:
    """(1 − w) · cross-entropy of the next token + w · KL(teacher ‖ model), means over all predictions, in nats.

    kl_weight: w, between 0 and 1. Computed in fp32; of the vocabulary, only the gradient is kept for the backward pass,
    in the logits' dtype. A scalar; 0 for w = 1 where both predict the same.
    """
    return _Distillation.apply(logits_BSV[:, :-1], tokens_BS[:, 1:], teacher_BSV[:, :-1], kl_weight)


class _Distillation(torch.autograd.Function):
    """∂/∂logits = (p − (1 − w) onehot − w q) / P, which falls out of the forward pass."""

    @staticmethod
    def forward(ctx: Any, logits_BPV: Tensor, next_BP: Tensor, teacher_BPV: Tensor, kl_weight: float) -> Tensor:
        log_p = logits_BPV.float().log_softmax(-1)
        log_q = teacher_BPV.float().log_softmax(-1)
        next_BP1 = next_BP[..., None]
        q = log_q.exp()
        divergence_BP = (q * (log_q - log_p)).sum(-1)
        entropy_BP = -log_p.gather(-1, next_BP1)[..., 0]
        gradient = log_p.exp_().sub_(q, alpha=kl_weight)
        gradient.scatter_add_(-1, next_BP1, torch.full_like(gradient[..., :1], kl_weight - 1.0))
        ctx.save_for_backward(gradient.div_(next_BP.numel()).to(logits_BPV.dtype))
        return (1 - kl_weight) * entropy_BP.mean() + kl_weight * divergence_BP.mean()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream.to(gradient.dtype), None, None, None
