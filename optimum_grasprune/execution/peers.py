"""The processes that do one run together, each with the whole model, as the rest of the project sees them.

Every process goes through the same steps. What differs between them is which sequences they read; what they come to is
put together, so that all of them decide the same.

Shape suffix: B batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

Gradients = Callable[[Tensor], tuple[Tensor, Sequence[Tensor]]]
"""From places of sequences, shape (B,), to their mean loss, a scalar, and its gradients by what is trained."""

Named = Mapping[str, Tensor]


class Peers:
    """A process that is alone. Several are `Processes`.

    rank: its number, from 0.  count: how many there are.  local_count: how many of them are on one
    machine, at the most.
    """

    rank: int = 0
    count: int = 1
    local_count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def mean(
        self, indices_B: Tensor, work: Gradients, numbers: Sequence[Tensor], *, in_step: bool = False
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """What `work` comes to over a batch, of which each process takes its share. numbers: what is trained.

        in_step: whether all have to work, since each needs something of the others for it.
        """
        return work(indices_B)

    def whole(self, part: Tensor, rows: Sequence[int]) -> Tensor:
        """A tensor of which each process has a part of the rows, which follow one another. rows: of each process.

        It is in memory of its own, where the part is or on the CPU.
        """
        return part.clone()

    def of_all(self, tensors: Named) -> list[Named]:
        """The tensors of every process, in the order of ranks, on the CPU."""
        return [tensors]

    def of_first(self, work: Callable[[], Named | None]) -> Named | None:
        """What the first process works out, on the CPU; the others do not."""
        return work()

    def text_of_first(self, work: Callable[[], str]) -> str:
        """The same for a text."""
        return work()

    def stop(self) -> None:
        """Have all processes stop after the same step."""

    @property
    def is_ending(self) -> bool:
        """Whether another process has ended, so that this one is about to."""
        return False

    @property
    def stops(self) -> bool:
        """Whether they agreed, at the last step of a training, to stop after it."""
        return False
