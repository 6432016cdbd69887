"""The weights of decoder layers that stay elsewhere until a layer is run, and are in memory for one layer only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .surgery import OnDisk


class Stored(Protocol):
    """A tensor that is somewhere else until it is read."""

    def read(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The tensor, in memory of its own."""


@dataclass(frozen=True)
class _Place:
    """Where a parameter belongs. empty: what stands there while it is not in memory, with its shape and dtype."""

    name: str
    module: nn.Module
    leaf: str
    empty: nn.Parameter

    def put(self, parameter: nn.Parameter) -> None:
        self.module._parameters[self.leaf] = parameter


class LayerStore:
    """Brings the weights of a model's decoder layers into memory, one layer at a time.

    A layer is known by its number, and its weights are put into the modules that hold them: a model that shares these
    modules, and has others of its own beside them, computes with them too.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layers: str,
        stored: Mapping[str, Stored],
        device: torch.device,
        check: Callable[[str, Tensor], None],
        *,
        in_step: bool = False,
    ) -> None:
        """model: has its layers, below the path `layers`, on the meta device.  stored: at least all tensors of these.

        device: where the model computes.  check: looks at each tensor when it is read for the first time.
        in_step: whether several processes have to read each tensor at once.
        """
        self.device, self.in_step = device, in_step
        self._check, self._stored, self._checked = check, stored, set[str]()
        self._edited: MutableMapping[str, Tensor] | None = None
        self._places = [
            list(_places(layer, f"{layers}.{number}")) for number, layer in model.get_submodule(layers).named_children()
        ]
        self._of_name = {place.name: place for places in self._places for place in places}
        self._held: int | None = None

    @property
    def names(self) -> frozenset[str]:
        """Parameters that stay elsewhere, as the model calls them."""
        return frozenset(self._of_name)

    def fetch(self, layer: int) -> None:
        """See that the weights of this layer are in memory; those of any other are let go, where nothing needs them."""
        if self._held == layer:
            return
        self.release()
        self._held = layer
        try:
            for place in self._places[layer]:
                place.put(nn.Parameter(self.read(place.name), requires_grad=False))
        except BaseException:
            self.release()  # a layer is there as a whole or not at all
            raise

    def release(self) -> None:
        """Have no layer in memory."""
        if self._held is not None:
            for place in self._places[self._held]:
                place.put(place.empty)
        self._held = None

    def read(self, name: str) -> Tensor:
        """A parameter in the model's dtype, where the model computes; what is in memory stays as it is.

        Raises ModelError when it has a NaN or an infinity, CheckpointError when it cannot be read any more.
        """
        dtype = self._of_name[name].empty.dtype
        if self._edited is not None and name in self._edited:
            return self._edited[name].to(self.device, dtype)
        tensor = self._stored[name].read(self.device, dtype)
        if name not in self._checked:
            self._check(name, tensor)
            self._checked.add(name)
        return tensor

    def settle(self, layer: int) -> None:
        """Have the weights of a layer in memory for good, as they were left."""
        self.release()
        for place in self._places[layer]:
            place.put(nn.Parameter(self.read(place.name), requires_grad=False))
            if self._edited is not None:
                self._edited.pop(place.name, None)

    @contextmanager
    def editing(self, module: nn.Module) -> Iterator[None]:
        """Inside the block a module's own weights are in memory; what is changed of them stays, on the disk."""
        self.release()
        places = [place for place in self._of_name.values() if place.module is module]
        for place in places:
            place.put(nn.Parameter(self.read(place.name), requires_grad=False))
        yield
        if self._edited is None:
            self._edited = OnDisk()
        for place in places:
            self._edited[place.name] = module.get_parameter(place.leaf)
            place.put(place.empty)

    def holds(self, parameter: nn.Parameter) -> bool:
        """Whether it is one that stands for a tensor that is elsewhere."""
        return any(place.empty is parameter for place in self._of_name.values())


def _places(layer: nn.Module, path: str) -> Iterator[_Place]:
    for name, module in layer.named_modules(prefix=path):
        for leaf, parameter in module._parameters.items():
            if parameter is not None:
                yield _Place(f"{name}.{leaf}", module, leaf, parameter)


_ATTRIBUTE = "layer_store"


def attach_store(model: PreTrainedModel, store: LayerStore) -> None:
    """Have whoever gets the model know where its layers are, also by a copy that shares its modules."""
    vars(model)[_ATTRIBUTE] = store


def store_of(model: nn.Module) -> LayerStore | None:
    """What the weights of a model's layers come from; None for a model that has them in memory."""
    return vars(model).get(_ATTRIBUTE)


def detach_store(model: PreTrainedModel) -> None:
    """Have a model be one like any other, when all of its layers are settled."""
    del vars(model)[_ATTRIBUTE]
