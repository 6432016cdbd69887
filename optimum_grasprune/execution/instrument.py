"""Temporary edits to a model that is run: multipliers, fixed weights, eyes on activations. Each undoes itself.

A unit's multiplier acts where its output enters the output projection (`down_proj`, `o_proj`). At 0 the model computes
exactly what it computes without the unit; at γ, exactly what it computes with γ folded into the weights.

Shape suffixes: T tokens, I input features of an output projection, U units, K units of one block; `…` for any leading
axes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from ..families import Block, linear_at
from ..units import UnitInventory


class Gates:
    """The multipliers in force, one per unit, all ones at first. They act where the model is, wherever they come from.

    values_U: shape (units,); assign a new tensor before each forward.  counts: units of each group.
    """

    def __init__(self, counts: Sequence[int], device: torch.device) -> None:
        self._counts, self._device = list(counts), device
        self.values_U = torch.ones(sum(counts), dtype=torch.float32, device=device)

    @property
    def values_U(self) -> Tensor:
        """The multipliers, on the model's device."""
        return self._values_U

    @values_U.setter
    def values_U(self, values_U: Tensor) -> None:
        self._values_U = values_U.to(self._device)
        # All at once, so that the backward pass puts the parts together; for slices it adds up as many whole vectors.
        self._of_groups = self._values_U.split(self._counts)

    def of_group(self, position: int) -> Tensor:
        """The multipliers of one group."""
        return self._of_groups[position]


@contextmanager
def gated(
    model: PreTrainedModel, blocks: tuple[Block, ...], inventory: UnitInventory, device: torch.device
) -> Iterator[Gates]:
    """The model with a multiplier on every unit; without them again when the block ends."""
    gates = Gates([group.count for group in inventory.groups], device)
    positions = {group.address: position for position, group in enumerate(inventory.groups)}
    with ExitStack() as hooks:
        for block in blocks:
            hook = _multiply_input(gates, positions[block.address])
            hooks.callback(linear_at(model, block.output).register_forward_pre_hook(hook).remove)
        yield gates


def _multiply_input(gates: Gates, position: int) -> Any:
    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        input_I, *others = inputs
        values_K = gates.of_group(position).to(input_I.device, input_I.dtype)
        return (input_I * values_K.repeat_interleave(input_I.shape[-1] // len(values_K)), *others)

    return hook


@contextmanager
def hidden_given(model: PreTrainedModel, hidden_BSD: Tensor) -> Iterator[None]:
    """While the block runs, the decoder stack returns these hidden states, so that calling the model runs its head.

    What a causal language model makes of them (a scale, a cap on logits) is in its own forward.
    """
    stack = model.get_decoder()
    output: Any = BaseModelOutputWithPast(last_hidden_state=hidden_BSD)  # type: ignore[arg-type]
    own = vars(stack).get("forward")  # as accelerate gives it one
    stack.forward = lambda *_, **__: output
    try:
        yield
    finally:
        if own is None:
            del stack.forward
        else:
            stack.forward = own


@contextmanager
def weights_given(model: nn.Module, names: Sequence[str]) -> Iterator[Callable[[Sequence[Tensor]], None]]:
    """While the block runs, what is given last stands in for the named parameters, which nothing touches.

    names: as in `named_parameters`.  Yields what gives tensors for them, in their order; before it is called the model
    has none. Gradients reach the tensors that are given.
    """
    places = [(model.get_submodule(path), leaf) for path, _, leaf in (name.rpartition(".") for name in names)]
    # Put back as a whole, since the order of a module's parameters is that of the model's.
    own = {module: dict(module._parameters) for module, _ in places}

    def give(tensors: Sequence[Tensor]) -> None:
        for (module, leaf), tensor in zip(places, tensors, strict=True):
            vars(module)[leaf] = tensor

    try:
        for module, leaf in places:
            del module._parameters[leaf]
        yield give
    finally:
        for module, leaf in places:
            vars(module).pop(leaf, None)
        for module, parameters in own.items():
            module._parameters.clear()
            module._parameters.update(parameters)


@contextmanager
def inputs_of(modules: Mapping[str, nn.Module], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """While the block runs, `see(name, x_TI)` gets the input of each module at each forward, tokens in rows."""

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda _, inputs: see(name, inputs[0].flatten(0, -2))

    with ExitStack() as hooks:
        for name, module in modules.items():
            hooks.callback(module.register_forward_pre_hook(watch(name)).remove)
        yield


@contextmanager
def gradients_at(
    modules: Mapping[str, nn.Module],
    see: Callable[[str, Tensor, Tensor], None],
    see_output: Callable[[str, Tensor], None],
    device: torch.device,
) -> Iterator[Tensor]:
    """While the block runs, a backward pass to what is yielded shows what it comes to at each module.

    `see(name, x_TI, ∂S/∂x)` gets the module's input, `see_output(name, ∂S/∂y)` its output's gradient, shape (T, O).

    The weights are fixed, so it is the number that is yielded that makes autograd record the activations.
    """
    source = torch.zeros((), dtype=torch.float32, device=device, requires_grad=True)

    def show(name: str, x: Tensor, gradient: Tensor) -> None:
        see(name, x.flatten(0, -2), gradient.flatten(0, -2))

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
        return lambda _, inputs: (_Watched.apply(inputs[0], source, partial(show, name)), *inputs[1:])

    def watch_output(name: str) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        def hook(_: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            output.register_hook(lambda gradient: see_output(name, gradient.flatten(0, -2)))
            return output

        return hook

    with ExitStack() as hooks:
        for name, module in modules.items():
            hooks.callback(module.register_forward_pre_hook(watch(name)).remove)
            hooks.callback(module.register_forward_hook(watch_output(name)).remove)
        yield source


class _Watched(torch.autograd.Function):
    """x as it is; the backward pass shows `see(x, ∂S/∂x)`.

    x is left to autograd to save, and to gradient checkpointing to recompute: who holds on to it from the forward pass,
    to ask for its gradient later, holds the inputs of all layers at once.
    """

    @staticmethod
    def forward(ctx: Any, x_I: Tensor, source: Tensor, see: Callable[[Tensor, Tensor], None]) -> Tensor:
        ctx.save_for_backward(x_I)
        ctx.see = see
        return x_I.view_as(x_I)

    @staticmethod
    def backward(ctx: Any, gradient_I: Tensor) -> tuple[Tensor, None, None]:
        (x_I,) = ctx.saved_tensors
        ctx.see(x_I, gradient_I)
        return gradient_I, None, None


_DROPOUT = ("dropout", "layerdrop")
_FLAGS = {"training", "gradient_checkpointing", "_gradient_checkpointing_func", *_DROPOUT}
"""What decides how a module of transformers' runs, as it stands in the module itself."""


@contextmanager
def frozen(model: PreTrainedModel, *, gradient_checkpointing: bool = False) -> Iterator[None]:
    """The model with fixed weights and without dropout; every flag is put back when the block ends.

    gradient_checkpointing: whether layers are recomputed in the backward pass. Inside the block that alone decides,
    whatever the model was set to; afterwards it is set as it was, with its own arguments.
    """
    # Weights made under torch.inference_mode require no gradient in effect, and their flag cannot be put back.
    required = [(part, part.requires_grad) for part in model.parameters() if not part.is_inference()]
    states = [vars(module) for module in model.modules()]
    flags = [{name: state[name] for name in _FLAGS & state.keys()} for state in states]
    try:
        for parameter, _ in required:
            parameter.requires_grad_(False)
        model.eval()
        _checkpoint_layers(model, gradient_checkpointing)
        yield
    finally:
        for parameter, flag in required:
            parameter.requires_grad_(flag)
        for state, before in zip(states, flags, strict=True):
            for name in _FLAGS:
                state.pop(name, None)
            state.update(before)


def _checkpoint_layers(model: PreTrainedModel, wanted: bool) -> None:
    # Not by `gradient_checkpointing_enable`, which also leaves a hook on the embeddings that nothing takes off again.
    for module in model.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = wanted  # type: ignore[assignment]
            if wanted:
                module._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)  # type: ignore[assignment]
                # transformers recomputes a layer only while the layer itself is in training mode. Its children stay in
                # evaluation mode, so dropout stays off, but where the layer does it by itself.
                module.training = True
                for name in _DROPOUT:
                    if isinstance(vars(module).get(name), float):
                        setattr(module, name, 0.0)
