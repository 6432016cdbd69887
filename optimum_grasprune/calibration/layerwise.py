"""Running a model layer by layer, so that statistics of one layer at a time are in memory.

Shape suffixes: B batch, S sequence, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..families import Family
from ..units import Kind
from .collect import inputs_of


class _Reached(Exception):
    """Stops a forward pass once what it was run for is known."""


@dataclass
class LayerStream:
    """What flows between the layers of a model: one hidden state per sequence, on the CPU between layers.

    hidden: shape (1, S, D) each.  arguments: what the layer takes beside it (positions, mask), the same for all.
    """

    hidden: list[Tensor]
    arguments: dict[str, Any]

    @classmethod
    @torch.no_grad()
    def start(cls, model: PreTrainedModel, family: Family, tokens_NS: Tensor) -> LayerStream:
        """The inputs of the first layer; tokens_NS: shape (N, S), int64."""
        hidden: list[Tensor] = []
        arguments: dict[str, Any] = {}

        def catch(_: nn.Module, inputs: tuple[Tensor, ...], others: dict[str, Any]) -> None:
            hidden.append(inputs[0].cpu())
            arguments.update(others)
            raise _Reached

        first = next(family.decoder_layers(model))
        handle = first.register_forward_pre_hook(catch, with_kwargs=True)
        try:
            for tokens_S in tokens_NS:
                try:
                    model.base_model(tokens_S[None].to(model.device), use_cache=False)
                except _Reached:
                    continue
        finally:
            handle.remove()
        return cls(hidden, arguments)

    @torch.no_grad()
    def through(self, layer: nn.Module, position: int) -> Tensor:
        """The layer's output for one sequence, shape (1, S, D); what the stream holds stays."""
        device = next(layer.parameters()).device
        output = layer(self.hidden[position].to(device), **self.arguments)
        return output[0] if isinstance(output, tuple) else output

    def input_of(self, module: nn.Module, layer: nn.Module, position: int) -> Tensor:
        """What enters a module of the layer for one sequence, tokens in rows; the rest of the layer is not run."""
        seen: list[Tensor] = []

        def stop(_: object, x_BSI: Tensor) -> None:
            seen.append(x_BSI.flatten(0, -2))
            raise _Reached

        with inputs_of({None: module}, stop):
            try:
                self.through(layer, position)
            except _Reached:
                return seen[0]
        raise ValueError("the layer does not run the module")

    def advance(
        self,
        layer: nn.Module,
        modules: Mapping[Kind, nn.Module] | None = None,
        see: Callable[[Kind, Tensor], None] | None = None,
    ) -> None:
        """Take every sequence through the layer; `see(kind, x)` gets what enters each module, tokens in rows."""
        with ExitStack() as hooks:
            if modules and see:
                hooks.enter_context(inputs_of(modules, lambda kind, x_BSI: see(kind, x_BSI.flatten(0, -2))))
            self.hidden = [self.through(layer, position).cpu() for position in range(len(self.hidden))]
