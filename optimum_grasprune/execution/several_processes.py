"""Another runner in each of several processes, which share the sequences among them.

Shape suffixes: N sequences, S sequence, B batch, D hidden, U units.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel
from typing_extensions import Self

from ..errors import GraspruneError, GraspruneWarning
from ..numerics import fp64_device
from .around import Around
from .course import Course
from .distillation import LiveTeacher, Teacher, Teaches
from .peers import Peers
from .runner import Runner, Training, loss_not_finite
from .trainable import Trainable

_AT_ONCE = 8
"""Hidden states of as many sequences each process tells the others of at a time, since there are copies on the way."""


def shared(inner: Runner, peers: Peers) -> Runner:
    """A runner that shares its work with its peers, if it has any."""
    return inner if peers.count == 1 else SeveralProcesses(inner, peers)


class SeveralProcesses(Around):
    """The same model in all processes, and each of them goes through its share of the sequences.

    Losses are those of one process to the last bit; statistics and trainings to rounding, since sums are made in
    another order; what is gathered is put together by the course of the pass. What runs layer by layer, each process
    runs by itself. Who has no sequences left makes the passes of the others with one of theirs, where the inner runner
    has to keep in step.
    """

    def __init__(self, inner: Runner, peers: Peers) -> None:
        super().__init__(inner)
        self.peers = inner.peers = peers

    def beside(self, model: PreTrainedModel) -> Self:
        """See `Runner.beside`."""
        return type(self)(self.inner.beside(model), self.peers)

    def clock(self) -> float:
        """See `Runner.clock`: the first process's, so that all run out of time at once."""
        return float(self.peers.text_of_first(lambda: repr(time.monotonic())))

    def losses(self, windows_NS: Tensor, batch_size: int = 1) -> Iterator[Tensor]:
        """See `Runner.losses`: of all windows in their order, in every process."""
        rank, count = self.peers.rank, self.peers.count
        batches = windows_NS.split(batch_size)
        mine = list(batches[rank::count])
        if self.in_step:
            mine += batches[:1] * (-(-len(batches) // count) - len(mine))
        own = self.inner.losses(torch.cat(mine), batch_size) if mine else iter(())
        for first in range(0, len(batches), count):
            of_all = self.peers.of_all({"losses": _next_of(own, fp64_device(self.device))})
            for place, found in enumerate(of_all[: len(batches) - first], start=first):
                losses_BS = found["losses"].to(fp64_device(self.device))
                if not math.isfinite(losses_BS.sum().item()):
                    raise loss_not_finite(place * batch_size, len(windows_NS))
                yield losses_BS

    def learn(
        self,
        trained: Trainable,
        tokens_NS: Tensor,
        training: Training,
        dense: Teaches | None = None,
        status: Callable[[], Sequence[str]] = tuple,
        course: Course | None = None,
    ) -> list[Tensor]:
        """See `Runner.learn`: each process works out the gradient of its share of a batch, and takes the same step."""
        if training.batch_size < self.peers.count:
            warnings.warn(
                f"{training.batch_option} {training.batch_size}: no more than as many of the {self.peers.count} "
                f"processes have work at a step of {training.label}; give {self.peers.count}, or a multiple of it",
                GraspruneWarning,
                stacklevel=2,
            )
        course = course or Course({})
        course.measured_by = self
        return self.inner.learn(trained, tokens_NS, training, dense or self, status, course)

    def teacher(
        self, tokens_NS: Tensor, *, live: bool = False, hidden_NSD: Tensor | None = None
    ) -> Teacher | LiveTeacher:
        """See `Runner.teacher`: every sequence is read once, and what it came to is known to all."""
        if live or hidden_NSD is not None or len(tokens_NS) < self.peers.count:
            return self.inner.teacher(tokens_NS, live=live, hidden_NSD=hidden_NSD)
        most = -(-len(tokens_NS) // self.peers.count)
        mine_NS = tokens_NS[self.peers.rank :: self.peers.count]
        if self.in_step and len(mine_NS) < most:
            mine_NS = torch.cat([mine_NS, tokens_NS[:1]])
        own = self.inner.teacher(mine_NS)
        if isinstance(own, LiveTeacher):
            raise TypeError("a teacher that is not to be live is live")
        own_NSD = own.hidden_NSD
        whole_NSD = own_NSD.new_empty(len(tokens_NS), *own_NSD.shape[1:])
        for first in range(0, most, _AT_ONCE):
            of_all = self.peers.of_all({"hidden": own_NSD[first : first + _AT_ONCE]})
            for rank, found in enumerate(of_all):
                place_NSD = whole_NSD[rank :: self.peers.count][first : first + _AT_ONCE]
                place_NSD.copy_(found["hidden"][: len(place_NSD)])
        return self.inner.teacher(tokens_NS, hidden_NSD=whole_NSD)


def _next_of(losses: Iterator[Tensor], device: torch.device) -> Tensor:
    """The next losses of this process, if it has any; where they are not finite, one number that says so."""
    try:
        return next(losses, torch.zeros(0, dtype=torch.float64, device=device))
    except GraspruneError:
        return torch.full((1,), math.nan, dtype=torch.float64, device=device)
