"""Loading a model so that it can be run by a runner, and the options that say where it may be."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec

import torch
from transformers import PreTrainedModel

from ..config import RunnerName, RunnerOptions
from ..errors import OptionError
from ..loading import load_model, resolve_device
from ..model_files import ReadAs
from ..streamed_loading import streamed_model
from .free_memory import FreeMemory, free_memory
from .peers import Peers
from .shares import shared_out

SHARE_FOR_WEIGHTS = 0.8
"""Of what is free, where weights are spread over it; the rest is for all that is computed."""

Limits = Mapping[int | str, int]
"""Bytes of weights by device: a GPU's number, or cpu."""


def check_runner(options: RunnerOptions, device: str, peers: Peers) -> None:
    """Raise OptionError for options that do not go together, or that nothing here can do."""
    resolve_device(device)
    if options.runner == "sharded" and peers.count == 1:
        raise OptionError("runner", options.runner, "is for several processes, as torchrun starts them")
    if options.runner == "offloaded" and find_spec("accelerate") is None:
        raise OptionError("runner", options.runner, "needs accelerate: pip install accelerate")
    if options.max_memory is None:
        return
    if options.runner not in ("auto", "offloaded"):
        raise OptionError("runner", options.runner, "has no meaning beside --max-memory, which spreads the model")
    if device != "auto":
        raise OptionError("device", device, "has no meaning beside --max-memory, which names the devices")
    for number in options.max_memory:
        if number != "cpu" and number not in range(torch.cuda.device_count()):
            raise OptionError("max_memory", number, f"is no GPU here, of which there are {torch.cuda.device_count()}")


def computing_device(options: RunnerOptions, device: str) -> str:
    """Where a model computes: on the first GPU that `max_memory` names, or the CPU; without it, the option's value."""
    if options.max_memory is None:
        return device
    gpus = [number for number in options.max_memory if number != "cpu"]
    return f"cuda:{min(gpus)}" if gpus else "cpu"


def limits_for(options: RunnerOptions, device: str) -> Limits:
    """Most bytes of weights by device where a model is offloaded: those that are given, or a share of what is free."""
    if options.max_memory is not None:
        return {"cpu": 0, **options.max_memory}
    return limits_of(free_memory(device), SHARE_FOR_WEIGHTS)


def limits_of(free: FreeMemory, share: float) -> Limits:
    """The share of what is free that weights may take, by device."""
    limits: dict[int | str, int] = {number: int(size * share) for number, size in free.gpus.items()}
    return {**limits, "cpu": int(free.host * share)}


def placed_model(
    source: str,
    runner: RunnerName,
    options: RunnerOptions,
    *,
    dtype: str,
    device: str,
    read_as: ReadAs,
    peers: Peers,
) -> PreTrainedModel:
    """The model of a folder or Hub name, loaded for a runner.

    dtype, device, read_as: as in `load_model`, which says what is raised.  peers: the processes that prune it together.
    """
    if runner == "offloaded":
        return load_model(source, dtype=dtype, device_map="auto", max_memory=limits_for(options, device), **read_as)
    device = computing_device(options, device)
    if runner == "sharded":
        return streamed_model(source, dtype=dtype, device=device, held=shared_out(peers), **read_as)
    if runner == "streamed":
        return streamed_model(source, dtype=dtype, device=device, **read_as)
    return load_model(source, dtype=dtype, device=device, **read_as)
