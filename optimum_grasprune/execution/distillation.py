"""The dense model as a teacher: who says what it predicts.

Shape suffixes: N sequences, B batch, S sequence, V vocabulary, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .chunks import Predictions


@dataclass(frozen=True)
class Teacher:
    """What the dense model makes of the sequences that something is trained on: read once, looked up at every step.

    hidden: its last hidden states of each sequence, shape (S, D), on the CPU: D numbers a token, where logits would be
    V. Several teachers may hold the same.
    head: from hidden states, shape (B, S, D), to logits, where the dense model is.
    """

    hidden: Sequence[Tensor]
    head: Callable[[Tensor], Tensor]

    @property
    def hidden_NSD(self) -> Tensor:
        """A copy of all of them."""
        return torch.stack(list(self.hidden))

    def predictions(self, indices_B: Tensor) -> Predictions:
        """What it predicts of the sequences at these places."""
        return Predictions(self._hidden_at(indices_B), self.head)

    def logits(self, indices_B: Tensor) -> Tensor:
        """All logits of those, shape (B, S, V)."""
        return self.head(self._hidden_at(indices_B))

    def _hidden_at(self, indices_B: Tensor) -> Tensor:
        return torch.stack([self.hidden[index] for index in indices_B.tolist()])


@dataclass(frozen=True)
class LiveTeacher:
    """The same, run when it is asked: as much work where each sequence is seen once, and nothing to keep.

    tokens_NS: the sequences, int64.  read: from tokens, shape (B, S), to last hidden states, (B, S, D).  head: as of
    `Teacher`.
    """

    tokens_NS: Tensor
    read: Callable[[Tensor], Tensor]
    head: Callable[[Tensor], Tensor]

    def predictions(self, indices_B: Tensor) -> Predictions:
        """What it predicts of the sequences at these places."""
        return Predictions(self.read(self.tokens_NS[indices_B]), self.head)

    def logits(self, indices_B: Tensor) -> Tensor:
        """All logits of those, shape (B, S, V)."""
        return self.head(self.read(self.tokens_NS[indices_B]))


HELD_BYTES = 2**31
"""Bytes of hidden states up to which the dense model teaches those who train weights from memory, and may be gone
meanwhile; of a model as wide as LLaMA-3-8B a quarter of a million tokens, twice what is trained on by default."""


def may_be_held(tokens: int, hidden_size: int, element: int) -> bool:
    """Whether what a teacher makes of so many tokens takes at most HELD_BYTES. element: bytes of a number."""
    return tokens * hidden_size * element <= HELD_BYTES


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
            self._hidden.update(zip(unread, read.hidden, strict=True))
            self._head = read.head
        if self._head is None:
            raise ValueError("there are no sequences to teach")
        return Teacher([self._hidden[row] for row in rows], self._head)
