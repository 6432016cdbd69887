"""How a model is run. Every forward and backward pass goes through a runner, which alone knows where the weights are.

Shape suffixes: N sequences, S sequence, U units.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from typing_extensions import Self

from ..config import GRASPConfig
from ..errors import GraspruneError
from ..families import Block, Family, family_of, inventory_of, linear_at
from ..statistics import Statistic
from ..surgery import Draft, drafted
from ..units import PruningPlan, UnitInventory
from .course import Course
from .distillation import LiveTeacher, Teacher, Teaches
from .instrument import Gates
from .peers import Peers
from .run_state import Piece
from .stream import LayerStream
from .trace import Traced
from .trainable import Trainable


@dataclass(frozen=True)
class Training:
    """How numbers are trained on a model that is fixed but for them.

    epochs: passes over the sequences.  batch_size: sequences in a step.  seed: of their order.
    learning_rate: AdamW's, at the first step.  schedule: `GateOptions.schedule`.
    gradient_checkpointing: recompute each layer in the backward pass.  label: of its bar and in messages.
    kl_weight: share of the loss that is the divergence from what a teacher predicts; 0 trains on the text alone.
    rehearsed: for each sequence whether the divergence alone is learnt of it, since it is rehearsed; empty for none.
    warmup: share of the steps over which the learning rate rises.
    clip: largest norm of all gradients together; None for any.
    live_teacher: run the teacher at every step, instead of keeping its hidden states for all sequences.
    batch_option: what sets batch_size on a command line, for messages.
    """

    epochs: int
    batch_size: int
    seed: int
    learning_rate: float
    schedule: str
    gradient_checkpointing: bool
    label: str
    kl_weight: float = 0.0
    rehearsed: tuple[bool, ...] = ()
    warmup: float = 0.0
    clip: float | None = None
    live_teacher: bool = False
    batch_option: str = "--batch-size"

    @classmethod
    def of(
        cls,
        config: GRASPConfig,
        label: str,
        *,
        epochs: int,
        learning_rate: float,
        kl_weight: float = 0.0,
        rehearsed: tuple[bool, ...] = (),
        warmup: float = 0.0,
    ) -> Training:
        """By a configuration. kl_weight: where the configuration leaves it to what is trained."""
        return cls(
            epochs=epochs,
            batch_size=config.batch_size,
            seed=config.seed,
            learning_rate=learning_rate,
            schedule=config.schedule,
            gradient_checkpointing=config.gradient_checkpointing,
            label=label,
            kl_weight=kl_weight if config.kl_weight is None else config.kl_weight,
            rehearsed=rehearsed,
            warmup=warmup,
        )

    @property
    def taught(self) -> bool:
        """Whether it has a teacher."""
        return self.kl_weight > 0 or any(self.rehearsed)

    def kl_weight_of(self, indices_B: Tensor) -> float | Tensor:
        """The share of some sequences: of all alike, or, where any is rehearsed, of each, shape (B,), fp32."""
        if not any(self.rehearsed):
            return self.kl_weight
        return torch.tensor([1.0 if self.rehearsed[index] else self.kl_weight for index in indices_B.tolist()])


LEAN_FROM = 2**28
"""Bytes of the maps out of all blocks from which on a draft's are not held in memory, on a CPU."""

TOKENS_AT_ONCE = 4096
"""Tokens in windows that are read together on a GPU without a backward pass, which takes less memory than a step of
training: of one layer alone, activations are held."""


def windows_at_once(window: int, device: torch.device) -> int:
    """How many windows of so many tokens a device reads together. A CPU gains nothing by more than one.

    By sizes alone, never by what memory is free just then: another batch may round the losses differently.
    """
    return 1 if device.type == "cpu" else max(1, TOKENS_AT_ONCE // window)


class Runner(ABC):
    """Runs one model. A way of running models is a subclass; the rest of the project speaks to this class.

    trainings: those that were done, in their order.  peers: the processes that do the work together; this one alone.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.trainings: list[Traced] = []
        self.peers = Peers()

    @cached_property
    def family(self) -> Family:
        """The family of the model; UnsupportedFamilyError where it has none."""
        return family_of(self.model.config)

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """Its blocks of units."""
        return self.family.blocks(self.model)

    @cached_property
    def inventory(self) -> UnitInventory:
        """Its units."""
        return inventory_of(self.blocks)

    @property
    def in_memory(self) -> bool:
        """Whether all weights of the model are in memory, on one device."""
        return True

    @property
    def in_step(self) -> bool:
        """Whether all processes have to make every pass, since each needs something of the others for it."""
        return False

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.model.device

    @abstractmethod
    def parameter(self, name: str) -> Tensor:
        """A parameter as it stands, by its name in the model, on the device that the model computes on, detached.

        It may be a copy, and is only to be read: a runner need not have all parameters of a model in memory.
        """

    def beside(self, model: PreTrainedModel) -> Self:
        """Another model, run in the same way; the trainings of both are in one list."""
        runner = type(self)(model)
        runner.trainings = self.trainings
        return runner

    def draft(self, plan: PruningPlan, *, output_bias: bool = False) -> Draft:
        """A cut of the model that can be run, beside it, before it is built; options and errors as in `drafted`."""
        return drafted(self.model, plan, self.family, self.parameter, output_bias=output_bias, lean=self.drafts_lean)

    @property
    def drafts_lean(self) -> bool:
        """Whether a draft's maps are read when they are run: where they are large, and reading is quick beside that."""
        bytes_of_maps = sum(linear_at(self.model, block.output).weight.nbytes for block in self.blocks)
        return self.device.type == "cpu" and bytes_of_maps > LEAN_FROM

    def built(self, draft: Draft, *, inplace: bool = False, again: bool = False) -> PreTrainedModel:
        """The smaller model of a draft, which `beside` can run; see `Draft.build`."""
        return draft.build(inplace=inplace, again=again)

    def release(self) -> None:
        """Called before its model gives up weights; who has yet to read them all does so now."""
        return None

    def editing(self, linear: nn.Linear) -> AbstractContextManager[object]:
        """Inside the block the tensors of one of the model's linear maps are in memory, and may be changed for good."""
        return nullcontext(linear)

    def clock(self) -> float:
        """Seconds, for limits of time; where the work is taken up again, those of before count and no others."""
        return time.monotonic()

    @abstractmethod
    def losses(self, windows_NS: Tensor, batch_size: int = 1) -> Iterator[Tensor]:
        """Next-token losses of token windows, each scored on its own, in nats: a tensor of shape (B, S - 1) a batch.

        windows_NS: shape (N, S), int64. They are worked out in fp32 and given in fp64, where the model is, or on the
        CPU where that holds none.
        Raises GraspruneError on a loss that is not finite instead of leaving it out.
        """

    def mean_loss(self, windows_NS: Tensor, batch_size: int | None = None) -> float:
        """Mean next-token loss over token windows, each scored on its own, in nats: fp32 log-softmax, fp64 sum.

        windows_NS, errors: as in `losses`.  batch_size: windows at once; None for as many as suit the device.
        """
        together = batch_size or windows_at_once(windows_NS.shape[1], self.device)
        total = sum(losses_BS.sum().item() for losses_BS in self.losses(windows_NS, together))
        return total / (windows_NS.shape[0] * (windows_NS.shape[1] - 1))

    @abstractmethod
    def gated(self) -> AbstractContextManager[Gates]:
        """The model with a multiplier on every unit, all ones at first; without them when the block ends."""

    @abstractmethod
    def gather(
        self,
        statistics: Iterable[Statistic[Any]],
        tokens_NS: Tensor,
        maps: Sequence[str] | None = None,
        *,
        kept_U: Tensor | None = None,
        gradient_checkpointing: bool = False,
        piece: Piece | None = None,
    ) -> dict[Statistic[Any], Any]:
        """All the statistics, from one pass over the sequences: with a backward pass if any of them needs one.

        tokens_NS: shape (N, S), int64.  maps: paths of the linear maps whose inputs are watched; those that lead out of
        blocks by default.  kept_U: True for the units that are in the model, shape (units,); all by default.
        gradient_checkpointing: recompute each layer in the backward pass, so that one layer's activations are in
        memory.  piece: where the state is kept on the way; None to keep none.
        Raises GraspruneError, with the place, when something is not finite.
        """

    @abstractmethod
    def learn(
        self,
        trained: Trainable,
        tokens_NS: Tensor,
        training: Training,
        dense: Teaches | None = None,
        status: Callable[[], Sequence[str]] = tuple,
        course: Course | None = None,
    ) -> list[Tensor]:
        """Fit numbers with AdamW, behind a bar that shows loss and status, while the weights are fixed.

        tokens_NS: shape (N, S), int64.  dense: whose predictions count by `training.kl_weight_of`; by default the
        model's own, as it is without the numbers.  course: what looks on after each step, and may end the training.
        Returns what the numbers came to, on the CPU.  Raises GraspruneError when the loss is not finite.
        """

    @abstractmethod
    def teacher(
        self, tokens_NS: Tensor, *, live: bool = False, hidden_NSD: Tensor | None = None
    ) -> Teacher | LiveTeacher:
        """What the model, as it stands, predicts on the sequences; tokens_NS: shape (N, S), int64.

        live: have it run when it is asked, instead of once for all.  hidden_NSD: what it came to, where that is known.
        """

    @abstractmethod
    def stream(self, tokens_NS: Tensor) -> AbstractContextManager[LayerStream]:
        """The model with fixed weights, to be run layer by layer on the sequences; tokens_NS: shape (N, S), int64."""


def loss_not_finite(first: int, windows: int) -> GraspruneError:
    """The error of `Runner.losses`. first: place of the batch's first window.  windows: how many there are."""
    return GraspruneError(f"the loss is not finite in the batch from window {first + 1} of {windows}")
