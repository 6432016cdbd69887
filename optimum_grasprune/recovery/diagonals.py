"""Bounded multipliers on every input column and output row of every map of the layers, trained and folded.

y = r ⊙ W(c ⊙ x), r = 1 + ½·tanh(g_r), c = 1 + ½·tanh(g_c): a few numbers for each row and column, no direction in the
weights changes, and no parameter is added. Scales of units are its smallest case: c of the output projections alone.

Shape suffixes: D all diagonals of a model, I input and O output features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from ..config.diagonals import DiagonalOptions
from ..execution import Runner, Trainable, Training
from ..execution.trainable import Step
from ..execution.training import rate_for_cut
from ..families import linears
from ..units import PruningPlan
from .base import Learnt, NumbersStage
from .features import features_in_all, places_in_dense, sizes_of
from .reference import Reference
from .registry import register
from .scales import bounded_scale

if TYPE_CHECKING:
    from ..config import GRASPConfig


KL_WEIGHT = 0.5
"""What `kl_weight=None` is here."""
KL_WEIGHT_REHEARSED = 0.25
"""The same of the calibration sequences where others are rehearsed: what keeps the rest is in those."""


def diagonal_learning_rate(asked: float | None, cut: float) -> float:
    """AdamW's learning rate for the diagonals: what was asked, else 5e-3 for a cut of a fifth, 1e-2 for a half.

    cut: share of the prunable parameters that has gone; see `rate_for_cut`.
    """
    return rate_for_cut(1e-2, cut) if asked is None else asked


@register("diagonals")
@dataclass(frozen=True)
class Diagonals(NumbersStage):
    """Trains the diagonals on the sliced model, with the dense one as its teacher."""

    config: GRASPConfig

    name = "diagonals"
    sentence = "The rows and columns of all maps in the layers were scaled by trained factors, which are folded"
    needs_sequences = True
    options = tuple(DiagonalOptions.model_fields)
    starts_refitted = True
    rehearses = True

    @classmethod
    def from_config(cls, config: GRASPConfig) -> Self:
        """The stage of a configuration."""
        return cls(config)

    def course(self, reference: Reference, cut: float) -> tuple[Tensor, Training]:
        """The first calibration sequences and some after them, with those that are rehearsed."""
        config = self.config
        asked = config.diagonal_sequences(*reference.tokens_NS.shape)
        tokens_NS, rehearsed = reference.trained_on_both(asked)
        return tokens_NS, Training.of(
            config,
            "diagonals",
            epochs=config.diagonal_epochs,
            learning_rate=diagonal_learning_rate(config.diagonal_learning_rate, cut),
            kl_weight=KL_WEIGHT_REHEARSED if rehearsed else KL_WEIGHT,
            rehearsed=rehearsed,
        )

    def acting(self, pruned: Runner) -> DiagonalMultipliers:
        """The multipliers of all its maps."""
        return DiagonalMultipliers(linears(pruned.model, pruned.blocks))

    def places(self, pruned: Runner, dense: Runner, plan: PruningPlan) -> Tensor:
        """Those of the features that stay."""
        return places_in_dense(linears(pruned.model, pruned.blocks), dense, plan)

    def count(self, pruned: Runner, dense: Runner) -> int:
        """Features of the dense maps."""
        return features_in_all(linears(pruned.model, pruned.blocks), dense)

    def learnt(self, numbers: Tensor, pruned: Runner, plan: PruningPlan) -> LearntDiagonals:
        """Diagonals to be folded."""
        return LearntDiagonals(numbers, self.acting(pruned), pruned, plan)


@dataclass(frozen=True)
class DiagonalMultipliers(Trainable):
    """The diagonals of some maps, one after another, input before output.

    maps: by path.
    """

    maps: Mapping[str, nn.Linear]

    def start(self) -> Sequence[Tensor]:
        """One tensor of all, zeros, at which every multiplier is 1."""
        return (torch.zeros(sum(sizes_of(self.maps)), dtype=torch.float32, device="cpu"),)

    def split(self, raw_D: Tensor) -> Iterator[tuple[nn.Linear, Tensor, Tensor]]:
        """Each map with its multipliers: of its input, shape (I,), and of its output, shape (O,)."""
        parts = iter(bounded_scale(raw_D).split(sizes_of(self.maps)))
        for linear in self.maps.values():
            yield linear, next(parts), next(parts)

    @contextmanager
    def attached(self, runner: Runner, numbers: Sequence[Tensor]) -> Iterator[Step]:
        """The inputs and outputs of the maps are multiplied."""
        in_force: dict[nn.Module, tuple[Tensor, Tensor]] = {}

        def step(progress: float, judged: bool = False) -> None:
            (raw_D,) = numbers
            in_force.update({linear: (columns_I, rows_O) for linear, columns_I, rows_O in self.split(raw_D)})

        with ExitStack() as hooks:
            for linear in self.maps.values():
                hooks.callback(linear.register_forward_pre_hook(_multiply_input(in_force)).remove)
                hooks.callback(linear.register_forward_hook(_multiply_output(in_force)).remove)
            yield step


def _multiply_input(in_force: Mapping[nn.Module, tuple[Tensor, Tensor]]) -> Callable[..., Any]:
    def hook(linear: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0] * in_force[linear][0].to(inputs[0].device, inputs[0].dtype), *inputs[1:])

    return hook


def _multiply_output(in_force: Mapping[nn.Module, tuple[Tensor, Tensor]]) -> Callable[..., Any]:
    def hook(linear: nn.Module, _: Any, output: Tensor) -> Tensor:
        return output * in_force[linear][1].to(output.device, output.dtype)

    return hook


@dataclass(frozen=True)
class LearntDiagonals(Learnt):
    """Diagonals of a sliced model. raw_D: g of all of them, fp32, on the CPU.  plan: what was kept."""

    raw_D: Tensor
    trained: DiagonalMultipliers
    runner: Runner
    plan: PruningPlan

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Inputs and outputs of the maps are multiplied, by hooks."""
        with self.trained.attached(self.runner, [self.raw_D]) as step:
            step(1.0)
            yield

    @torch.no_grad()
    def fold(self) -> PruningPlan:
        """Multiply them into weights and biases, in place."""
        for linear, columns_I, rows_O in self.trained.split(self.raw_D):
            with self.runner.editing(linear):
                linear.weight.copy_(folded(linear.weight, columns_I, rows_O))
                if linear.bias is not None:
                    linear.bias.copy_(linear.bias.float() * rows_O.to(linear.bias.device))
        return self.plan


def folded(weight_OI: Tensor, columns_I: Tensor, rows_O: Tensor) -> Tensor:
    """diag(r) W diag(c), in fp32, rounded once to the weight's dtype; shape (O, I)."""
    columns_I, rows_O = (part.to(weight_OI.device, torch.float32) for part in (columns_I, rows_O))
    return (rows_O[:, None] * weight_OI.float() * columns_I).to(weight_OI.dtype)
