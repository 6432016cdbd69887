"""Multipliers on units, put on a stock model by hooks and taken off again.

A unit's multiplier acts where its output enters the output projection (`down_proj`, `o_proj`). At 0 the model computes
exactly what it computes without the unit; at γ, exactly what it computes with γ folded into the weights.

Shape suffixes: B batch, S sequence, I input features of an output projection, U units, K units of one group.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from ..families import Family
from ..units import UnitInventory


class Gates:
    """The multipliers in force. values_U: one per unit, shape (units,); assign a new tensor before each forward."""

    def __init__(self, values_U: Tensor) -> None:
        self.values_U = values_U


@contextmanager
def gated(model: PreTrainedModel, family: Family, inventory: UnitInventory) -> Iterator[Gates]:
    """The model with a multiplier on every unit, all ones at first; without them again when the block ends."""
    gates = Gates(torch.ones(inventory.num_units, dtype=torch.float32, device=model.device))
    with ExitStack() as hooks:
        for (layer, kind), linear in family.output_projections(model).items():
            hook = _multiply_input(gates, inventory.slice_of(layer, kind))
            hooks.callback(linear.register_forward_pre_hook(hook).remove)
        yield gates


def _multiply_input(gates: Gates, span: slice) -> Any:
    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        (input_BSI,) = inputs
        values_K = gates.values_U[span].to(input_BSI.device, input_BSI.dtype)
        return (input_BSI * values_K.repeat_interleave(input_BSI.shape[-1] // len(values_K)),)

    return hook


_FLAGS = {"training", "gradient_checkpointing", "_gradient_checkpointing_func"}
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
                # evaluation mode, so dropout stays off.
                module.training = True


def straight_through(mask_U: Tensor, probabilities_U: Tensor) -> Tensor:
    """Z = m + p − stopgrad(p): the hard mask forward, the probability's gradient backward.

    (GRASPrune, arXiv 2604.19398, section 3.2.) Returns shape (units,).
    """
    return mask_U.to(probabilities_U.dtype) + probabilities_U - probabilities_U.detach()
