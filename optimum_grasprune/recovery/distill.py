"""Every weight of the layers, trained with the dense model as teacher.

The weights that are trained are copies in fp32, since a bf16 weight would not feel a small step: the model computes
with them rounded to its own dtype. Embeddings, the last norm and the head stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

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
        return MasterWeights(runner.model, tuple(names))


@dataclass(frozen=True)
class MasterWeights(TrainableWeights):
    """Parameters of a model in fp32. names: of the parameters."""

    model: PreTrainedModel
    names: tuple[str, ...]

    def start(self) -> Sequence[Tensor]:
        """What they are."""
        return [self.model.get_parameter(name).detach().float() for name in self.names]

    @contextmanager
    def attached(self, runner: Runner, numbers: Sequence[Tensor]) -> Iterator[Step]:
        """The numbers, rounded, stand in for the parameters."""
        dtypes = [self.model.get_parameter(name).dtype for name in self.names]
        with weights_given(self.model, self.names) as give:

            def step(_: float) -> None:
                give([number.to(dtype) for number, dtype in zip(numbers, dtypes, strict=True)])

            yield step

    def weights(self, numbers: Sequence[Tensor]) -> dict[str, Tensor]:
        """The numbers, rounded once."""
        own = {name: self.model.get_parameter(name) for name in self.names}
        return {
            name: number.detach().to(old.device, old.dtype)
            for (name, old), number in zip(own.items(), numbers, strict=True)
        }
