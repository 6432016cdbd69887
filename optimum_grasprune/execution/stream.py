"""Running a model layer by layer, so that statistics of one layer at a time are in memory.

Shape suffixes: N sequences, S sequence, T tokens, D hidden, I features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .instrument import inputs_of


class _Reached(Exception):
    """Stops a forward pass once what it was run for is known."""


@dataclass(frozen=True)
class LayerArguments:
    """What a layer takes beside the hidden state: positions, its mask. The same for all sequences of one length."""

    positional: tuple[Any, ...]
    named: Mapping[str, Any]


@dataclass
class LayerStream:
    """What flows between the layers of a model: one hidden state per sequence, on the CPU between layers.

    layers: the decoder layers, in order.  arguments: what each takes, which may differ (sliding windows).
    hidden: shape (1, S, D) each, what enters the next layer.  device: where what is seen of layers is brought to.
    """

    layers: Sequence[nn.Module]
    arguments: Sequence[LayerArguments]
    hidden: list[Tensor]
    device: torch.device

    @classmethod
    @torch.no_grad()
    def start(
        cls, layers: Sequence[nn.Module], run: Callable[[Tensor], object], tokens_NS: Tensor, device: torch.device
    ) -> LayerStream:
        """The inputs of the first layer.

        run: a forward pass of the model that the layers are of, for tokens of shape (1, S).
        """
        arguments: list[LayerArguments] = []

        def note(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            arguments.append(LayerArguments(inputs[1:], named))

        with ExitStack() as hooks:  # one sequence goes through the whole model: the masks of layers may differ
            for layer in layers:
                hooks.callback(layer.register_forward_pre_hook(note, with_kwargs=True).remove)
            run(tokens_NS[:1])
        hidden: list[Tensor] = []

        def catch(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            hidden.append(inputs[0].cpu())
            raise _Reached

        with ExitStack() as hooks:
            hooks.callback(layers[0].register_forward_pre_hook(catch).remove)
            for tokens_S in tokens_NS:
                try:
                    run(tokens_S[None])
                except _Reached:
                    continue
        return cls(layers, arguments, hidden, device)

    @torch.no_grad()
    def through(self, index: int, position: int) -> Tensor:
        """The output of a layer for one sequence, shape (1, S, D); what the stream holds stays."""
        arguments = self.arguments[index]
        hidden = self.hidden[position].to(self.device)
        output = self.layers[index](hidden, *arguments.positional, **arguments.named)
        return (output[0] if isinstance(output, tuple) else output).to(self.device)

    def input_of(self, module: nn.Module, index: int, position: int) -> Tensor:
        """What enters a module of a layer for one sequence, shape (T, I); the rest of the layer is not run."""
        seen: list[Tensor] = []

        def stop(_: str, x_TI: Tensor) -> None:
            seen.append(x_TI.to(self.device))
            raise _Reached

        with inputs_of({"": module}, stop):
            try:
                self.through(index, position)
            except _Reached:
                return seen[0]
        raise ValueError("the layer does not run the module")

    def advance(
        self,
        index: int,
        modules: Mapping[str, nn.Module] | None = None,
        see: Callable[[str, Tensor], None] | None = None,
    ) -> None:
        """Take every sequence through a layer; `see(name, x_TI)` gets what enters each module."""
        with ExitStack() as hooks:
            if modules and see:
                hooks.enter_context(inputs_of(modules, lambda path, x_TI: see(path, x_TI.to(self.device))))
            self.hidden = [self.through(index, position).cpu() for position in range(len(self.hidden))]
