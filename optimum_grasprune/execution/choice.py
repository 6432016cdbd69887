"""Which runner a model gets: by where its weights are, or before it is loaded by its size and what is free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from transformers import PreTrainedModel

from ..config import RunnerName
from ..dispatched import is_dispatched
from ..layer_store import store_of
from .free_memory import FreeMemory
from .offloaded import OffloadedModel
from .runner import Runner
from .streamed import StreamedModel
from .whole import WholeModel

SHARE_FOR_WEIGHTS = 0.8
"""Of what is free, where weights are spread over it; the rest is for all that is computed."""

Limits = Mapping[int | str, int]
"""Bytes of weights by device: a GPU's number, or cpu."""


@dataclass(frozen=True)
class Choice:
    """How a model is to be run.

    runner: an option's value.  why: the sizes that speak for it, in a line; empty where the model is whole.
    limits: most bytes of weights by device, where they are spread.
    """

    runner: RunnerName
    why: str = ""
    limits: Limits = field(default_factory=dict)


def runner_for(model: PreTrainedModel) -> Runner:
    """The runner of a model that is loaded, by where its weights are."""
    if store_of(model) is not None:
        return StreamedModel(model)
    return OffloadedModel(model) if is_dispatched(model) else WholeModel(model)


def needed_for_whole(weights: int) -> int:
    """Bytes that pruning takes where a whole model is, of so many bytes of weights."""
    return weights * 3 // 2


def chosen(
    weights: int,
    free: FreeMemory,
    share: float = SHARE_FOR_WEIGHTS,
    *,
    accelerate: bool = True,
    processes: int = 1,
) -> Choice:
    """The first that what is free allows: whole on the first GPU, or the CPU where there is none; offloaded; streamed.

    weights: bytes of all weights.  free: for each process.  share: of what is free, for weights that are spread.
    accelerate: whether it is installed, which spreads them.  processes: that do the work together; several hold
    weights in shares in place of offloading them, which each would for itself.
    """
    where, room = min(free.gpus.items(), default=("cpu", free.host))
    if (needed := needed_for_whole(weights)) <= room:
        return Choice("whole")
    name = "the CPU" if where == "cpu" else f"cuda:{where}"
    why = f"{_gib(weights)} of weights need {_gib(needed)} in one place, {name} has {_gib(room)} free"
    if processes > 1:
        if weights / processes <= share * room:
            return Choice("sharded", f"{why} for a process; {processes} of them hold them together")
        return Choice("streamed", f"{why} for a process, and {processes} of them do not hold them together")
    limits = limits_of(free, share)
    if not free.gpus or weights > sum(limits.values()):
        return Choice("streamed", f"{why}, and nothing else here holds them")
    if not accelerate:
        return Choice("streamed", f"{why}, and accelerate is not installed, which would spread them")
    gpus = "it" if len(free.gpus) == 1 else f"{len(free.gpus)} GPUs"
    holders = gpus if weights <= sum(limits.values()) - limits["cpu"] else f"{gpus} and CPU memory"
    return Choice("offloaded", f"{why}; {holders} hold them together", limits)


def limits_of(free: FreeMemory, share: float) -> Limits:
    """The share of what is free that weights may take, by device."""
    limits: dict[int | str, int] = {number: int(size * share) for number, size in free.gpus.items()}
    return {**limits, "cpu": int(free.host * share)}


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
