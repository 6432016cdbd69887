"""Reading activations off a running model: hooks in a context manager, statistics in whatever form the caller keeps.

Shape suffixes: N sequences, S sequence, T tokens, I features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import GraspruneError
from ..gating.gates import frozen
from ..numerics import precision_advice
from ..progress import track
from .statistics import Moments

Key = TypeVar("Key")


@contextmanager
def inputs_of(modules: Mapping[Key, nn.Module], see: Callable[[Key, Tensor], None]) -> Iterator[None]:
    """While the block runs, `see(key, x)` gets the input of each module at each forward, as it is."""

    def watch(key: Key) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda _, inputs: see(key, inputs[0])

    with ExitStack() as hooks:
        for key, module in modules.items():
            hooks.callback(module.register_forward_pre_hook(watch(key)).remove)
        yield


def finite(x_TI: Tensor, path: str) -> Tensor:
    """The input of the module at this path, as it is; GraspruneError, with the path, when it is not finite."""
    if not torch.isfinite(x_TI).all():
        raise GraspruneError(f"the input of {path} is not finite; {precision_advice(x_TI.dtype)}")
    return x_TI


@torch.no_grad()
def collect_moments(
    model: PreTrainedModel, modules: Mapping[Key, nn.Linear], tokens_NS: Tensor, label: str = "statistics"
) -> dict[Key, Moments]:
    """Moments of the input of each module over all tokens, one forward pass.

    tokens_NS: shape (N, S), int64.  Raises GraspruneError, with the module, when an input is not finite.
    """
    moments = {key: Moments.empty(module.in_features) for key, module in modules.items()}
    names = {module: name for name, module in model.named_modules()}

    def see(key: Key, x_BSI: Tensor) -> None:
        moments[key] = moments[key].update(finite(x_BSI.flatten(0, -2), names[modules[key]]))

    with frozen(model), inputs_of(modules, see):
        for tokens_S in track(tokens_NS, label, "sequence"):
            model.base_model(tokens_S[None].to(model.device), use_cache=False)
    return moments
