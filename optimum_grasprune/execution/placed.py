"""Loading a model so that it can be run: by the runner that is asked for, or by its size and what is free."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from transformers import PreTrainedModel

from ..config import RunnerOptions
from ..errors import OptionError
from ..loading import load_model, resolve_device
from ..model_files import ReadAs
from ..progress import note
from ..streamed_loading import streamed_model
from .choice import SHARE_FOR_WEIGHTS, Choice, Limits, chosen, limits_of
from .free_memory import FreeMemory, free_memory
from .peers import Peers
from .shares import shared_out

_ALONE = Peers()


def choice_for(
    empty: PreTrainedModel, options: RunnerOptions, *, dtype: str, device: str, peers: Peers = _ALONE
) -> Choice:
    """The runner that is asked for, or the one that fits; of several processes, the same for all of them.

    empty: the model, without memory for its weights.
    Other arguments as in `placed_model`. Raises OptionError for options that do not go together.
    """
    _check(options, device, peers)
    if options.runner == "offloaded":
        return Choice("offloaded", limits=_limits(options, device))
    # Of other devices torch does not tell what is free.
    if options.runner != "auto" or resolve_device(device).type not in ("cuda", "cpu", "mps"):
        return Choice("whole" if options.runner == "auto" else options.runner)
    return _chosen(weight_bytes_of(empty, dtype), options, device, peers)


def placed_model(
    source: str,
    options: RunnerOptions,
    choice: Choice,
    *,
    dtype: str,
    device: str,
    read_as: ReadAs,
    peers: Peers = _ALONE,
) -> PreTrainedModel:
    """The model of a folder or Hub name, loaded for a runner.

    A runner that was chosen and is not the plain one is told in a line, with what speaks for it.
    dtype, device, read_as: as in `load_model`, which says what is raised.  peers: the processes that prune it together.
    """
    if choice.why:
        note(f"runner: {choice.runner}, since {choice.why}")
    if choice.runner == "offloaded":
        return load_model(source, dtype=dtype, device_map="auto", max_memory=choice.limits, **read_as)
    if choice.runner == "sharded":
        return streamed_model(source, dtype=dtype, device=device, held=shared_out(peers), **read_as)
    if choice.runner == "streamed":
        return streamed_model(source, dtype=dtype, device=device, **read_as)
    if options.max_memory is not None:
        gpus = _allowed(options.max_memory).gpus
        device = f"cuda:{min(gpus)}" if gpus else "cpu"
    return load_model(source, dtype=dtype, device=device, **read_as)


def weight_bytes_of(model: PreTrainedModel, dtype: str) -> int:
    """Bytes of a model's weights in a precision, tied ones once; auto is its own. It may be an empty one."""
    asked = getattr(torch, dtype) if dtype != "auto" else getattr(model.config, "dtype", None)
    return sum(each.numel() for each in model.parameters()) * (asked or torch.float32).itemsize


def _check(options: RunnerOptions, device: str, peers: Peers) -> None:
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


def _chosen(weights: int, options: RunnerOptions, device: str, peers: Peers) -> Choice:
    accelerate = find_spec("accelerate") is not None
    if peers.count > 1:
        return chosen(weights, _least(free_memory(device, first=True), peers), processes=peers.count)
    if options.max_memory is not None:
        return chosen(weights, _allowed(options.max_memory), 1.0, accelerate=accelerate)
    # To ask a GPU takes some of its memory, which may be somebody else's: the others where the first is not enough.
    on_first = chosen(weights, free_memory(device, first=True), accelerate=accelerate)
    return on_first if on_first.runner == "whole" else chosen(weights, free_memory(device), accelerate=accelerate)


def _limits(options: RunnerOptions, device: str) -> Limits:
    if options.max_memory is not None:
        return limits_of(_allowed(options.max_memory), 1.0)
    return limits_of(free_memory(device), SHARE_FOR_WEIGHTS)


def _least(free: FreeMemory, peers: Peers) -> FreeMemory:
    """What every process has. free: as this one finds it, before those beside it on its machine take theirs."""
    own = torch.tensor([*free.gpus.values(), free.host // peers.local_count], dtype=torch.int64, device="cpu")
    *gpus, host = torch.stack([each["free"] for each in peers.of_all({"free": own})]).amin(0).tolist()
    return FreeMemory(dict(zip(free.gpus, gpus, strict=True)), host)


def _allowed(most: Limits) -> FreeMemory:
    """What a user allows, as what is free."""
    return FreeMemory({number: most[number] for number in most if isinstance(number, int)}, most.get("cpu", 0))
