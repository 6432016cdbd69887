"""Models that accelerate has dispatched: where they compute, and where their weights are meanwhile.

A `device_map` spreads a model over devices, and leaves in CPU memory or on disk what they do not hold. Hooks of
accelerate's, around each module's forward, then take inputs to where the module computes and, for the time of the
forward pass, weights that are offloaded too; outside of it such a parameter is on the meta device, without numbers.

Nothing here imports accelerate, which is not there where no model is dispatched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial, update_wrapper
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn


def is_dispatched(model: nn.Module) -> bool:
    """Whether accelerate's hooks are on a model."""
    return any(hasattr(module, "_hf_hook") for module in model.modules())


def is_offloaded(model: nn.Module) -> bool:
    """Whether any of its weights come to the device that computes for the time of a forward pass only."""
    return any(hook.offload for module in model.modules() for hook in hooks_of(module))


def hooks_of(module: nn.Module) -> Iterator[Any]:
    """The hooks of a module that place it: accelerate's `AlignDevicesHook`, one or in a sequence."""
    hook = getattr(module, "_hf_hook", None)
    for each in getattr(hook, "hooks", (hook,)):
        if any(cls.__name__ == "AlignDevicesHook" for cls in type(each).__mro__):
            yield each


def computes_on(module: nn.Module) -> torch.device | None:
    """The device that a module's hooks bring its inputs to; None where they leave them where they are."""
    devices = [hook.execution_device for hook in hooks_of(module) if hook.execution_device is not None]
    return torch.device(devices[-1]) if devices else None


def first_device(model: nn.Module) -> torch.device | None:
    """Where the first module with weights of its own computes: the embeddings. None for a model without hooks."""
    with_weights = (module for module in model.modules() if module._parameters)
    return next((device for each in with_weights if (device := computes_on(each)) is not None), None)


def wraps_own_forward(module: nn.Module) -> bool:
    """Whether what stands in for a module's forward is accelerate's, around that of its class."""
    inner = vars(module).get("_old_forward")
    own = getattr(inner, "__func__", None) is type(module).forward
    return own and hasattr(module, "_hf_hook") and getattr(module.forward, "__wrapped__", None) == inner


def rebind(copied: nn.Module) -> None:
    """Have the copy of a module run its own forward inside of accelerate's hooks, and not that of the original."""
    state = vars(copied)
    if isinstance(around := state.get("forward"), partial) and "_old_forward" in state:
        state["_old_forward"] = MethodType(type(copied).forward, copied)
        state["forward"] = update_wrapper(partial(around.func, copied), state["_old_forward"])


def tensor_at(model: nn.Module, name: str) -> Tensor:
    """A parameter or a buffer as it stands, detached, wherever it is kept; name: as in `state_dict`.

    Raises KeyError where it is kept nowhere.
    """
    path, _, leaf = name.rpartition(".")
    found = getattr(model.get_submodule(path), leaf)
    if not found.is_meta:
        return found.detach()
    if (kept := _kept(model, name)) is None:
        raise KeyError(name)
    weights, key = kept
    return weights[key].detach().to(found.dtype)


def kept_nowhere(model: nn.Module) -> str | None:
    """The first parameter that is neither in memory nor kept by a hook."""
    empty = (name for name, part in model.named_parameters() if part.is_meta)
    return next((name for name in empty if _kept(model, name) is None), None)


def out_of_reach(model: nn.Module) -> str | None:
    """The first module with weights on another device than its hooks bring inputs to, or without hooks."""
    for name, module in model.named_modules():
        where = computes_on(module)
        for part in module._parameters.values():
            if part is not None and not part.is_meta and (where is None or not _same(part.device, where)):
                return name
    return None


def tensors_of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What `state_dict` has, with the numbers of what is offloaded, one after another."""
    for name, tensor in model.state_dict().items():
        yield name, tensor_at(model, name) if tensor.is_meta else tensor


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """The same as a whole: what `state_dict` has where nothing is dispatched, all of it in CPU memory where it is."""
    if not is_dispatched(model):
        return model.state_dict()
    return {name: tensor.cpu() for name, tensor in tensors_of(model)}


def _kept(model: nn.Module, name: str) -> tuple[Mapping[str, Tensor], str] | None:
    """The map that has a weight, and its name there: that of a hook on the weight's module, or on one around it."""
    parts = name.split(".")
    for depth in range(len(parts) - 1, -1, -1):
        key = ".".join(parts[depth:])
        for hook in hooks_of(model.get_submodule(".".join(parts[:depth]))):
            if hook.offload and hook.weights_map is not None and _holds(hook.weights_map, key):
                return hook.weights_map, key
    return None


def _holds(weights: Any, name: str) -> bool:
    """Whether a map has a weight; to ask it by `in` would read what lies on disk."""
    if hasattr(weights, "prefix"):  # accelerate's PrefixedDataset, a view of the map of the whole model
        return _holds(weights.dataset, f"{weights.prefix}{name}")
    return name in iter(weights)


def _same(found: torch.device, wanted: torch.device) -> bool:
    return found.type == wanted.type and wanted.index in (None, found.index)
