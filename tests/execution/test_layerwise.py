"""Batches that go through layers sequence by sequence, on layers of a few numbers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from optimum_grasprune.execution import layerwise as under_test
from optimum_grasprune.execution.layerwise import layerwise, skipped


class Layer(nn.Module):
    """Multiplies, and notes what it was called with."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(factor), requires_grad=False)
        self.calls: list[tuple[Tensor, Any, Any]] = []

    def forward(self, hidden: Tensor, mask: Any = None, *, positions: Any = None) -> Tensor:
        self.calls.append((hidden.detach().clone(), mask, positions))
        return torch.exp(hidden * self.weight)


@pytest.fixture
def layers() -> list[Layer]:
    return [Layer(0.5), Layer(0.25)]


HIDDEN = torch.arange(6.0).view(3, 2, 1) / 6


def run(layers: list[Layer], hidden: Tensor) -> Tensor:
    for layer in layers:
        hidden = layer(hidden)
    return hidden


def test_every_sequence_by_itself_in_order(layers: list[Layer]) -> None:
    expected, asked = run(layers, HIDDEN), list[int]()
    for layer in layers:
        layer.calls.clear()
    with torch.no_grad(), layerwise(layers, asked.append):
        torch.testing.assert_close(run(layers, HIDDEN), expected)
    assert asked == [0, 0, 0, 1, 1, 1]
    assert torch.equal(torch.cat([hidden for hidden, *_ in layers[0].calls]), HIDDEN)
    assert not any("forward" in vars(layer) for layer in layers)


def test_gradients_come_in_the_order_of_the_sequences(layers: list[Layer]) -> None:
    asked, seen = list[int](), list[float]()
    hidden, alone = (HIDDEN.clone().requires_grad_() for _ in range(2))
    (expected,) = torch.autograd.grad(run(layers, alone).sum(), alone)
    with layerwise(layers, asked.append):
        output = run(layers, hidden)
        for layer in layers:
            layer.calls.clear()
        asked.clear()
        (gradient,) = torch.autograd.grad(output.sum(), hidden)
    torch.testing.assert_close(gradient, expected)
    assert asked == [1, 1, 1, 0, 0, 0]
    for layer in layers:
        seen = [call[0, 0, 0].item() for call, *_ in layer.calls]
        assert seen == sorted(seen) and len(seen) == 3


def test_only_hidden_states_between_layers_wait_for_the_backward_pass(
    layers: list[Layer], monkeypatch: pytest.MonkeyPatch
) -> None:
    packed, unpacked = list[torch.Size](), list[torch.Size]()

    def waiting(_: torch.device) -> AbstractContextManager[object]:
        def pack(tensor: Tensor) -> Tensor:
            packed.append(tensor.shape)
            return tensor.clone()

        def unpack(tensor: Tensor) -> Tensor:
            unpacked.append(tensor.shape)
            return tensor

        return saved_tensors_hooks(pack, unpack)

    monkeypatch.setattr(under_test, "_waiting", waiting)
    hidden = HIDDEN.clone().requires_grad_()
    with layerwise(layers, lambda _: None):
        torch.autograd.grad(run(layers, hidden).sum(), hidden)
    assert packed == [(1, 2, 1)] * 6 and unpacked == packed


@pytest.mark.parametrize("size", [1, 3])
def test_arguments_of_a_sequence(size: int, layers: list[Layer]) -> None:
    of_batch, for_all, places = torch.arange(size * 2).view(size, 2), torch.zeros(1, 2), torch.arange(3)
    named = {"a": (of_batch, None, for_all)}
    with torch.no_grad(), layerwise(layers, lambda _: None):
        layers[0](HIDDEN[:size], [of_batch, places], positions=named)
    for place, (_, mask, positions) in enumerate(layers[0].calls):
        assert torch.equal(mask[0], of_batch[place : place + 1]) and mask[1] is places
        own, nothing, same = positions["a"]
        assert torch.equal(own, of_batch[place : place + 1]) and nothing is None and torch.equal(same, for_all)
    assert len(layers[0].calls) == size


def test_skipped_layers_show_what_they_are_called_with(layers: list[Layer]) -> None:
    called = []
    layers[1].register_forward_pre_hook(lambda _, given, named: called.append(named), with_kwargs=True)
    with layerwise(layers, lambda _: pytest.fail("it is not run")), skipped(layers):
        assert layers[1](layers[0](HIDDEN), positions=3) is HIDDEN
    assert called == [{"positions": 3}] and not layers[0].calls


@pytest.mark.parametrize("inside", [skipped, lambda layers: layerwise(layers, lambda _: None)])
def test_blocks_may_be_nested_and_end_by_errors(
    inside: Callable[[list[Layer]], AbstractContextManager[None]], layers: list[Layer]
) -> None:
    asked = list[int]()
    with torch.no_grad(), layerwise(layers, asked.append):
        with pytest.raises(KeyError), inside(layers):
            raise KeyError
        layers[1](HIDDEN[:1])
    assert asked == [1] and not any("forward" in vars(layer) for layer in layers)
