"""What a teacher said while it was there.

Shape suffixes: N sequences, S sequence.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .distillation import LiveTeacher, Teacher, Teaches


class Taught:
    """A teacher that has been asked, of every tensor of sequences that it will be asked of, shape (N, S) each."""

    def __init__(self, dense: Teaches, sequences: Sequence[Tensor]) -> None:
        self._said = [(tokens_NS, dense.teacher(tokens_NS)) for tokens_NS in sequences]

    def teacher(self, tokens_NS: Tensor, *, live: bool = False) -> Teacher | LiveTeacher:
        """See `Runner.teacher`; ValueError for sequences that were not foreseen."""
        for asked_NS, said in self._said:
            if not live and torch.equal(asked_NS, tokens_NS):
                return said
        raise ValueError("the teacher was not asked of these sequences while it was there")
