"""Cut models that are run before they are built.

A draft is the dense model's own modules, with other maps out of the blocks whose units are cut: all that is new in
memory are these maps, and one draft at a time has them there; of a model whose layers are not in memory either, one of
these maps. What is chosen in the end is built.

Shape suffixes: O output features, K input features that stay.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from ..dispatched import is_dispatched, rebind, tensor_at
from ..families import Block, Family, inventory_of, linear_at
from ..units import PruningPlan
from .build import materialised, pruned_config, shallower_model
from .folding import scale_columns
from .paging import let_pages_go
from .slicing import cut_parameter, feature_indices, keep_units, parameters_of
from .spill import OnDisk

Read = Callable[[str], Tensor]
"""Gives a parameter of the dense model by its name, to be read only."""


class Draft(ABC):
    """A cut model that can be run, and edited where its cut left maps of its own."""

    @property
    @abstractmethod
    def model(self) -> PreTrainedModel:
        """What is run. Maps out of blocks are modules of the draft, at the paths that they have in the dense model."""

    def rest(self) -> None:  # noqa: B027
        """Take no memory until the model is asked for again."""

    def drop(self) -> None:  # noqa: B027
        """Be of no use any more, and take no memory."""

    @abstractmethod
    def build(self, *, inplace: bool = False, again: bool = False) -> PreTrainedModel:
        """The smaller model, as the draft stands; the draft is used up.

        again: whether it rests instead, to be built again.
        inplace: let go of each weight of the dense model when what stays of it is cut out. That model has the shapes
        of its weights afterwards, on the meta device, and no more of those that units run through.
        """


@dataclass(frozen=True)
class Outline:
    """A smaller model, tensor by tensor.

    config, causal_lm: its configuration and class.  layers: gives each parameter of its layers, by name, worked out
    when it is asked for; all others are the dense model's.
    """

    config: Any
    causal_lm: type[PreTrainedModel]
    layers: Mapping[str, Callable[[], Tensor]]


class Finished(Draft):
    """A model that is built already: one of the same size with zeros in it, which nothing is gained by drafting."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model

    @property
    def model(self) -> PreTrainedModel:
        """See `Draft.model`."""
        return self._model

    def build(self, *, inplace: bool = False, again: bool = False) -> PreTrainedModel:
        """See `Draft.build`."""
        return self._model


class Shallower(Draft):
    """Fewer layers. They are the dense model's own until the model is built."""

    def __init__(self, dense: PreTrainedModel, plan: PruningPlan, family: Family) -> None:
        self._given = dense, plan, family
        self._model = shallower_model(*self._given, shared=True)

    @property
    def model(self) -> PreTrainedModel:
        """See `Draft.model`."""
        return self._model

    def build(self, *, inplace: bool = False, again: bool = False) -> PreTrainedModel:
        """See `Draft.build`."""
        if not inplace:
            return shallower_model(*self._given)
        dense, _, family = self._given
        let_go(dense, [name for name, _ in dense.named_parameters() if name.startswith(f"{family.layers}.")])
        return self._model


class Narrower(Draft):
    """Fewer units. The maps out of blocks are cut, with multipliers and scales of the plan in them.

    read: gives the dense model's parameters.  output_bias: give every such map that has no bias one of zeros.
    lean: have maps in memory only while they are used, also of the draft that is run.
    Raises PlanError when the plan was made for other shapes.
    """

    def __init__(
        self,
        dense: PreTrainedModel,
        plan: PruningPlan,
        family: Family,
        read: Read,
        *,
        output_bias: bool = False,
        lean: bool = False,
    ) -> None:
        self._dense, self._plan, self._family, self._read = dense, plan, family, read
        self._blocks = family.blocks(dense)
        plan.check(inventory_of(self._blocks))
        self._everywhere = output_bias or getattr(dense.config, "output_bias", False)
        self._outputs: MutableMapping[str, Tensor] | None = OnDisk() if lean else None
        self._lean, self._device = lean, torch.device("meta")
        maps = {}
        for block in self._blocks:
            maps[block.output] = self._map(block)
            if self._outputs is not None:
                maps[block.output].lie_in(self._outputs, block.output)
        self._shell: PreTrainedModel | None = _shell(dense, maps)

    @property
    def model(self) -> PreTrainedModel:
        """See `Draft.model`."""
        if self._shell is None:
            if self._outputs is None:
                raise ValueError("the draft is used up")
            maps = {}
            for block in self._blocks:
                bias = f"{block.output}.bias"
                maps[block.output] = self._fed(
                    block,
                    self._outputs[f"{block.output}.weight"].to(self._device),
                    self._outputs[bias].to(self._device) if bias in self._outputs else None,
                )
            self._shell, self._outputs = _shell(self._dense, maps), None
        return self._shell

    def rest(self) -> None:
        """See `Draft.rest`."""
        if self._shell is not None and not self._lean:
            outputs = OnDisk()
            outputs.update(self._own())
            self._shell, self._outputs = None, outputs

    def drop(self) -> None:
        """See `Draft.drop`."""
        self._shell = self._outputs = None

    def build(self, *, inplace: bool = False, again: bool = False) -> PreTrainedModel:
        """See `Draft.build`. Weights that no unit runs through (embeddings, head, norms) are shared with the dense."""
        outline, dense = self.outline(again=again), self._dense
        dispatched = is_dispatched(dense)

        def taken(tensor: Tensor) -> Tensor:
            return tensor.cpu() if dispatched else tensor  # no device alone need hold what is left of it

        state = {name: taken(self._whole(name)) for name in dense.state_dict() if not self._in_layer(name)}
        left = dict(outline.layers)
        for block in self._blocks:
            names = [slot.parameter for slot in block.slots]
            state |= {name: taken(left.pop(name)()) for name in names if name in left}
            if inplace:
                let_go(dense, names)
        state |= {name: taken(gives()) for name, gives in left.items()}
        return materialised(outline.causal_lm, outline.config, state, dense)

    def outline(self, *, again: bool = False) -> Outline:
        """What it would be built of; again: as in `Draft.build`."""
        if again:
            self.rest()
        outputs = self._own() if self._outputs is None else self._outputs
        if not again:
            self.drop()
        config = pruned_config(self._dense.config, self._plan, output_bias=self._everywhere)
        layers: dict[str, Callable[[], Tensor]] = {
            name: partial(self._whole, name) for name in self._dense.state_dict() if self._in_layer(name)
        }
        for block in self._blocks:
            gone = not self._plan.group(block.address).kept
            for name in parameters_of(block, gone=gone):
                del layers[name]
                if not gone:
                    layers[name] = partial(cut_parameter, name, block, self._plan, self._read)
        for name, bias_O in self._family.output_biases(self._dense).items():
            if bias_O is not None:  # also of a block that was gone before
                layers[name] = partial(self._copied, name)
            elif self._everywhere:
                layers[name] = partial(self._no_bias, self._dense.config.hidden_size)
        for name in outputs:
            if name in layers:
                layers[name] = partial(self._placed, outputs, name)
        return Outline(config, self._family.pruned.causal_lm, layers)

    def _in_layer(self, name: str) -> bool:
        return name.startswith(f"{self._family.layers}.")

    def _whole(self, name: str) -> Tensor:
        """A tensor of the dense model's state, shared with it where it is in memory."""
        path, _, leaf = name.rpartition(".")
        tensor = getattr(self._dense.get_submodule(path), leaf)
        return self._read(name) if tensor.is_meta else tensor.detach()

    def _copied(self, name: str) -> Tensor:
        return self._whole(name).clone()

    def _placed(self, outputs: Mapping[str, Tensor], name: str) -> Tensor:
        return outputs[name].to(self._device)

    def _no_bias(self, size: int) -> Tensor:
        return torch.zeros(size, dtype=self._dense.dtype, device=self._device)

    def _own(self) -> dict[str, Tensor]:
        """The tensors of its own maps by name, as they stand."""
        model = self.model
        parts = (linear_at(model, block.output).named_parameters(prefix=block.output) for block in self._blocks)
        return {name: parameter.data for part in parts for name, parameter in part}

    @torch.no_grad()
    def _map(self, block: Block) -> OutputProjection:
        """The map out of a block, cut, with all that the plan has for its units folded."""
        group = self._plan.group(block.address)
        weight_OK = keep_units(self._read(f"{block.output}.weight"), block.slots[-1], group.kept, group.count)
        for values in (group.multipliers, group.scales):
            if values is not None and group.kept:
                weight_OK = scale_columns(weight_OK, torch.tensor(values, dtype=torch.float32, device="cpu"))
        bias_O = None
        if linear_at(self._dense, block.output).bias is not None:
            bias_O = self._read(f"{block.output}.bias").clone()
        elif self._everywhere:
            bias_O = weight_OK.new_zeros(len(weight_OK))
        return self._fed(block, weight_OK, bias_O)

    def _fed(self, block: Block, weight_OK: Tensor, bias_O: Tensor | None) -> OutputProjection:
        self._device = weight_OK.device
        group = self._plan.group(block.address)
        kept_K = feature_indices(group.kept, group.count * block.width, group.count).to(weight_OK.device)
        return OutputProjection(weight_OK, bias_O, None if len(group.kept) == group.count else kept_K)


class Rebuilt(Narrower):
    """A cut model whose weights were worked out anew once it was built; those of its layers lie on the disk.

    draft: what it was built of, which rests.  built: the model.  read: gives its parameters.
    """

    def __init__(self, draft: Narrower, built: PreTrainedModel, read: Read) -> None:
        draft.rest()
        vars(self).update(vars(draft))
        self._rebuilt = OnDisk()
        for name, _ in built.named_parameters():
            if self._in_layer(name):
                self._rebuilt[name] = read(name)

    @property
    def model(self) -> PreTrainedModel:
        """ValueError: its layers have little left of the dense model's, and are run when they are built."""
        raise ValueError("a rebuilt model is run when it is built")

    def rest(self) -> None:
        """See `Draft.rest`."""

    def outline(self, *, again: bool = False) -> Outline:
        """See `Narrower.outline`."""
        outline = super().outline(again=again)
        rebuilt = {name: partial(self._placed, self._rebuilt, name) for name in self._rebuilt}
        return replace(outline, layers={**outline.layers, **rebuilt})


def drafted(
    dense: PreTrainedModel,
    plan: PruningPlan,
    family: Family,
    read: Read,
    *,
    output_bias: bool = False,
    lean: bool = False,
) -> Draft:
    """The draft of a plan. read: gives the dense model's parameters.

    output_bias: give every output projection that has no bias one of zeros, to be filled by the caller; where the plan
    drops whole layers nothing is added.  lean: as in `Narrower`.
    Raises PlanError when the plan was made for other shapes.
    """
    if plan.whole_layers:
        plan.check(inventory_of(family.blocks(dense)))
        return Shallower(dense, plan, family)
    return Narrower(dense, plan, family, read, output_bias=output_bias, lean=lean)


def build_pruned_model(
    model: PreTrainedModel, plan: PruningPlan, family: Family, *, output_bias: bool = False
) -> PreTrainedModel:
    """A new model with the plan's units, its multipliers and scales folded in; the given model stays as it is.

    Where the plan drops whole layers it is one of the same class with fewer layers. Weights that no unit runs through
    (embeddings, head, norms) are shared with the given model; those of output projections never are, so that they may
    be edited in place.  Options and errors are those of `drafted`.
    """
    return drafted(model, plan, family, partial(tensor_at, model), output_bias=output_bias).build()


class OutputProjection(nn.Linear):
    """The map out of a cut block, where the block still computes all its units.

    weight_OK: its columns.  bias_O: shape (O,); None for none.  kept_K: which of the block's features they are of, as
    indices; None for all. Whoever watches what enters sees those alone, as in the model that is built.
    """

    def __init__(self, weight_OK: Tensor, bias_O: Tensor | None, kept_K: Tensor | None) -> None:
        nn.Module.__init__(self)  # what nn.Linear's own would do is make a weight and fill it
        self.out_features, self.in_features = weight_OK.shape
        self.weight = nn.Parameter(weight_OK, requires_grad=False)
        self.register_parameter("bias", None if bias_O is None else nn.Parameter(bias_O, requires_grad=False))
        if kept_K is not None:
            self.register_forward_pre_hook(
                lambda _, inputs: (inputs[0].index_select(-1, kept_K.to(inputs[0].device)), *inputs[1:])
            )
        self._files: MutableMapping[str, Tensor] | None = None
        self._path, self._device = "", weight_OK.device

    def forward(self, input: Tensor) -> Tensor:
        """What nn.Linear computes, where the input is: the layers of one model may be on several devices."""
        weight_OK, bias_O = (part if part is None else part.to(input.device) for part in (self.weight, self.bias))
        return functional.linear(input, weight_OK, bias_O)

    def lie_in(self, files: MutableMapping[str, Tensor], path: str) -> None:
        """Have its tensors there, under the names that they have below this path, and in memory while it is run."""
        self._files, self._path = files, path
        self._write()
        self.register_forward_pre_hook(lambda module, _: module._read())
        self.register_forward_hook(lambda module, *_: module._let_go())

    @contextmanager
    def in_memory(self) -> Iterator[None]:
        """Inside the block its tensors are in memory, and what is changed of them stays changed."""
        self._read()
        yield
        self._write()

    def _read(self) -> None:
        for leaf, parameter in self._parameters.items():
            if parameter is not None and parameter.is_meta and self._files is not None:
                stored = self._files[f"{self._path}.{leaf}"].to(self._device)
                self._parameters[leaf] = nn.Parameter(stored, requires_grad=False)

    def _write(self) -> None:
        if self._files is not None:
            for leaf, parameter in self.named_parameters():
                self._files[f"{self._path}.{leaf}"] = parameter.data
            self._let_go()

    def _let_go(self) -> None:
        for leaf, parameter in self._parameters.items():
            if parameter is not None:
                self._parameters[leaf] = _emptied(parameter)


def in_memory(linear: nn.Module) -> AbstractContextManager[None]:
    """Inside the block the tensors of a map of a cut model are in memory, and may be changed."""
    return linear.in_memory() if isinstance(linear, OutputProjection) else nullcontext()


def _shell(dense: PreTrainedModel, maps: Mapping[str, nn.Module]) -> PreTrainedModel:
    """The dense model with other modules at these paths; all others are the very same."""
    shell = _shallow_copy(dense)
    copies: dict[str, nn.Module] = {"": shell}
    for path, module in maps.items():
        *parents, leaf = path.split(".")
        for depth, name in enumerate(parents, start=1):
            above, here = ".".join(parents[: depth - 1]), ".".join(parents[:depth])
            if here not in copies:
                copies[here] = _shallow_copy(copies[above].get_submodule(name))
                copies[above]._modules[name] = copies[here]
        copies[".".join(parents)]._modules[leaf] = module
    return shell


def _shallow_copy(module: Any) -> Any:
    """A module of the same parts, that may be given others, hooks and flags without a change to this one."""
    own = copy.copy(module)
    vars(own).update({name: copy.copy(value) for name, value in vars(module).items() if isinstance(value, dict)})
    rebind(own)
    return own


def let_go(dense: PreTrainedModel, names: Sequence[str]) -> None:
    """Keep the shapes of some parameters, and no memory."""
    for name in names:
        path, _, leaf = name.rpartition(".")
        module = dense.get_submodule(path)
        old = module.get_parameter(leaf)
        module._parameters[leaf] = _emptied(old)
        let_pages_go(old.data)


def _emptied(parameter: nn.Parameter) -> nn.Parameter:
    """What stands for a parameter that is not in memory, with its shape and dtype."""
    return nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad)
