"""A batch that goes through a model layer after layer, and through each layer one sequence after another.

So a layer is asked for once for many sequences, and the activations of one sequence in one layer are in memory at a
time, in the backward pass too: it runs a layer again from the hidden state that entered it.

Shape suffixes: B batch, S sequence, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint

Forward = Callable[..., Any]


@contextmanager
def layerwise(layers: Sequence[nn.Module], fetch: Callable[[int], None]) -> Iterator[None]:
    """While the block runs, each of the layers takes the sequences of a batch one by one.

    fetch: called with the number of a layer before it is run or run again, to have its weights in memory.

    Where gradients are recorded the sequences go through a layer in reverse order, so that autograd, which goes back
    the way it came, has them in their order. Hidden states between the layers wait on the CPU for the backward pass.
    """
    with _replaced(layers, lambda layer, number: partial(_one_by_one, type(layer).forward, layer, number, fetch)):
        yield


def skipped(layers: Sequence[nn.Module]) -> AbstractContextManager[None]:
    """While the block runs, the layers hand on what they are given, though hooks on them see how they are called."""
    return _replaced(layers, lambda *_: lambda hidden_BSD, *_, **__: hidden_BSD)


@contextmanager
def _replaced(layers: Sequence[nn.Module], forward_of: Callable[[nn.Module, int], Forward]) -> Iterator[None]:
    before = [vars(layer).get("forward") for layer in layers]
    try:
        for number, layer in enumerate(layers):
            vars(layer)["forward"] = forward_of(layer, number)
        yield
    finally:
        for layer, forward in zip(layers, before, strict=True):
            vars(layer).pop("forward", None)
            if forward is not None:
                vars(layer)["forward"] = forward


def _one_by_one(
    forward: Forward,
    layer: nn.Module,
    number: int,
    fetch: Callable[[int], None],
    hidden_BSD: Tensor,
    *others: Any,
    **named: Any,
) -> Tensor:
    """A layer's output for a batch."""

    def run(hidden_1SD: Tensor, others: Any, named: Any) -> Tensor:
        fetch(number)  # in here, since the backward pass comes here again
        return forward(layer, hidden_1SD, *others, **named)

    size, recorded = len(hidden_BSD), torch.is_grad_enabled()
    outputs: dict[int, Tensor] = {}
    # All parts by one operation, whose backward pass puts them together; that of a slice fills a whole batch.
    parts = hidden_BSD.split(1)
    for place in reversed(range(size)) if recorded else range(size):
        given = parts[place], _of_sequence(others, place, size), _of_sequence(named, place, size)
        if recorded:
            with _waiting(hidden_BSD.device):
                # Without dropout there is no state of a random generator to put back.
                outputs[place] = checkpoint(run, *given, use_reentrant=False, preserve_rng_state=False)
        else:
            outputs[place] = run(*given)
    return torch.cat([outputs[place] for place in range(size)])


def _waiting(device: torch.device) -> AbstractContextManager[object]:
    """Inside the block, what is kept for the backward pass goes to the CPU; it is what checkpoints begin from."""
    return save_on_cpu(pin_memory=True) if device.type == "cuda" else nullcontext()


def _of_sequence(argument: Any, place: int, size: int) -> Any:
    """What an argument of a layer is for one sequence of a batch: tensors with an axis of this size are sliced.

    Masks and positions without such an axis are the same for all.
    """
    if isinstance(argument, Tensor):
        return argument[place : place + 1] if argument.ndim > 1 and len(argument) == size else argument
    if isinstance(argument, tuple | list):
        return type(argument)(_of_sequence(each, place, size) for each in argument)
    if isinstance(argument, dict):
        return {name: _of_sequence(each, place, size) for name, each in argument.items()}
    return argument
