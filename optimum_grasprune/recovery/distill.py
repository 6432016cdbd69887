"""Every weight of the layers, trained with the dense model as teacher.

The weights that are trained are copies in fp32, since a bf16 weight would not feel a small step: the model computes
with them rounded to its own dtype. Embeddings, the last norm and the head stay as they are. What comes out lies between
what was there and what was trained, W + α (W' − W) with `recover_interpolation` for α  (WiSE-FT, arXiv 2109.01903).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..execution import Runner, weights_given
from ..execution.trainable import Step
from .fine_tuning import FineTuning, TrainableWeights
from .registry import register


@register("distill")
class Distill(FineTuning):
    """Trains maps and norms of all layers."""

    name = "distill"
    sentence = "All weights of the layers were then trained, with the dense model as teacher"
    learning_rate = 3e-4

    def trainable(self, runner: Runner) -> MasterWeights:
        """All parameters of the layers."""
        layers = set(runner.family.decoder_layers(runner.model))
        paths = {path for path, module in runner.model.named_modules() if module in layers}
        names = [
            name for name, _ in runner.model.named_parameters() if any(name.startswith(f"{path}.") for path in paths)
        ]
        return MasterWeights(runner.model, tuple(names), self.config.recover_interpolation)


@dataclass(frozen=True)
class MasterWeights(TrainableWeights):
    """Parameters of a model in fp32. names: of the parameters.  kept_share: α."""

    model: PreTrainedModel
    names: tuple[str, ...]
    kept_share: float

    def start(self) -> Sequence[Tensor]:
        """What they are."""
        return [self.model.get_parameter(name).detach().float() for name in self.names]

    @contextmanager
    def attached(self, runner: Runner, numbers: Sequence[Tensor]) -> Iterator[Step]:
        """The numbers, rounded, stand in for the parameters."""
        starts = [self.model.get_parameter(name).detach() for name in self.names]
        with weights_given(self.model, self.names) as give:

            def step(progress: float, judged: bool = False) -> None:
                pairs = zip(starts, numbers, strict=True)
                give([self._between(*pair) if judged else _rounded(*pair) for pair in pairs])

            yield step

    def weights(self, numbers: Sequence[Tensor]) -> dict[str, Tensor]:
        """What is kept of the numbers, rounded once."""
        own = {name: self.model.get_parameter(name).detach() for name in self.names}
        return {
            name: self._between(start, number.to(start.device))
            for (name, start), number in zip(own.items(), numbers, strict=True)
        }

    @torch.no_grad()
    def _between(self, start: Tensor, number: Tensor) -> Tensor:
        return _rounded(start, start.float().lerp(number, self.kept_share))


def _rounded(start: Tensor, number: Tensor) -> Tensor:
    return number.to(start.dtype)
