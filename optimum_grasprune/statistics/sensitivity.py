"""What removing a unit would do to the loss, to first order, token by token: one backward pass, no weight gradients.

Shape suffixes: T tokens of one sequence, I input features of an output projection, U units, K units of one block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import GraspruneError
from ..families import Block, inventory_of
from ..numerics import precision_advice
from .base import Collector, Statistic

Reduction = Callable[[Tensor], Tensor]
"""From the sensitivities of one sequence, shape (T, K), to one number per unit, shape (K,)."""


def squared_per_token(sensitivity_TK: Tensor) -> Tensor:
    """Σ_t g_t²: the diagonal of the empirical Fisher matrix with each token as a sample, shape (K,)."""
    return sensitivity_TK.square().sum(0)


def squared_per_sequence(sensitivity_TK: Tensor) -> Tensor:
    """(Σ_t g_t)²: the same with each sequence as a sample, shape (K,)."""
    return sensitivity_TK.sum(0).square()


@dataclass(frozen=True)
class Sensitivity(Statistic[Tensor]):
    """Sum over sequences of `reduce(g)`, g_tk = Σ_channels x · ∂S/∂x at token t for unit k, divided by the tokens.

    x is the unit's part of the input of its output projection and S the summed loss of the sequence, so g is the
    derivative of S by a multiplier on the unit at that token alone.  (Fisher information, as in LLM-Pruner,
    arXiv 2305.11627, and Kwon et al., arXiv 2204.09656.)

    What is gathered: shape (units,), fp32, on the CPU; 0 for units that are out.
    """

    reduce: Reduction

    from_gradients = True

    def collector(self, blocks: tuple[Block, ...], maps: Mapping[str, int]) -> Collector[Tensor]:
        """The sensitivities of the units of all blocks."""
        return _Collector(self.reduce, blocks)


PER_TOKEN = Sensitivity(squared_per_token)
PER_SEQUENCE = Sensitivity(squared_per_sequence)


class _Collector(Collector[Tensor]):
    def __init__(self, reduce: Reduction, blocks: tuple[Block, ...]) -> None:
        self._reduce = reduce
        self._inventory = inventory_of(blocks)
        self._spans = {block.output: self._inventory.slice_of(block.address) for block in blocks}
        self._dtype = torch.float32
        # Where their gradients are: to fetch them from a device in the midst of a backward pass would make it stop.
        self._totals: dict[str, Tensor] = {}

    def see_gradient(self, path: str, x_TI: Tensor, gradient_TI: Tensor) -> None:
        span, self._dtype = self._spans[path], gradient_TI.dtype
        product_TI = x_TI.float() * gradient_TI.float()
        added_K = self._reduce(product_TI.unflatten(1, (span.stop - span.start, -1)).sum(2)).float()
        before_K = self._totals.get(path)
        self._totals[path] = added_K if before_K is None else before_K + added_K

    def kept(self) -> dict[str, Tensor]:
        return {"total": self._total_U}

    def take_up(self, kept: Mapping[str, Tensor], device: torch.device) -> None:
        self._totals = {path: kept["total"][span].to(device) for path, span in self._spans.items()}

    @property
    def _total_U(self) -> Tensor:
        total_U = torch.zeros(self._inventory.num_units, dtype=torch.float32, device="cpu")
        for path, total_K in self._totals.items():
            total_U[self._spans[path]] = total_K.cpu()
        return total_U

    def merged(self, parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        first, *others = (part["total"] for part in parts)
        return {"total": sum(others, start=first)}

    def result(self, tokens: int) -> Tensor:
        total_U = self._total_U
        infinite_U = ~torch.isfinite(total_U)
        if infinite_U.any():
            address, _ = self._inventory.locate(int(infinite_U.nonzero()[0]))
            raise GraspruneError(f"the gradient in {address} is not finite; {precision_advice(self._dtype)}")
        return total_U / tokens
