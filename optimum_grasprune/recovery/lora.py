"""Low-rank updates of every map of the layers, trained and merged.  (LoRA, arXiv 2106.09685)

y = W x + B A x with A of shape (rank, I) and B of shape (O, rank), B zero at first, W fixed; then W ← W + α B A with
`recover_interpolation` for α  (WiSE-FT, arXiv 2109.01903). The adapters are peft's.

Shape suffixes: R rank, I input and O output features.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import OptionError
from ..execution import Runner
from ..execution.trainable import Step
from ..families import linear_at, linears
from .fine_tuning import FineTuning, TrainableWeights
from .registry import register

_ADAPTER = "recovery"


@register("lora")
class Lora(FineTuning):
    """Trains adapters on all maps of the layers; nothing of them is left but what they add to the weights."""

    name = "lora"
    sentence = "The weights of all maps in the layers were then trained by low-rank updates (LoRA), which are merged"
    learning_rate = 2e-3

    def check(self) -> None:
        """Raise OptionError without peft."""
        if find_spec("peft") is None:
            raise OptionError("recover", self.name, 'needs peft: pip install "optimum-grasprune[recover]"')

    def trainable(self, runner: Runner) -> Adapters:
        """An adapter for each map."""
        paths = linears(runner.model, runner.blocks)
        return Adapters(
            runner.model, tuple(paths), self.config.recover_rank, self.config.seed, self.config.recover_interpolation
        )


@dataclass(frozen=True)
class Adapters(TrainableWeights):
    """Adapters of maps, two numbers' tensors each: A, then B. paths: of the maps.  kept_share: α."""

    model: PreTrainedModel
    paths: tuple[str, ...]
    rank: int
    seed: int
    kept_share: float

    def start(self) -> Sequence[Tensor]:
        """A uniform within ±1 ÷ √I, as peft has it, and B zero, so that the model is as it was."""
        generator = torch.Generator("cpu").manual_seed(self.seed)
        numbers: list[Tensor] = []
        for linear in (linear_at(self.model, path) for path in self.paths):
            first_RI = torch.rand(self.rank, linear.in_features, generator=generator, device="cpu")
            numbers.append((2 * first_RI - 1) / math.sqrt(linear.in_features))
            numbers.append(torch.zeros(linear.out_features, self.rank, device="cpu"))
        return numbers

    @contextmanager
    def attached(self, runner: Runner, numbers: Sequence[Tensor]) -> Iterator[Step]:
        """The maps have their adapters, whose weights are the numbers."""
        from peft import LoraConfig
        from peft.tuners.lora import LoraLayer, LoraModel

        required = [(part, part.requires_grad) for part in self.model.parameters()]
        settings = LoraConfig(r=self.rank, lora_alpha=self.rank, target_modules=list(self.paths))
        with torch.random.fork_rng(devices=[]):  # peft draws starts of its own, which are not used
            adapted = LoraModel(self.model, settings, _ADAPTER)
        layers = [module for module in adapted.modules() if isinstance(module, LoraLayer)]
        try:
            for path, first_RI, second_OR in zip(self.paths, numbers[::2], numbers[1::2], strict=True):
                layer: nn.Module = self.model.get_submodule(path)
                layer.get_submodule(f"lora_A.{_ADAPTER}").weight = _parameter(first_RI)
                layer.get_submodule(f"lora_B.{_ADAPTER}").weight = _parameter(second_OR)

            def step(progress: float, judged: bool = False) -> None:
                for layer in layers:
                    layer.scaling[_ADAPTER] = self.kept_share if judged else 1.0

            yield step
        finally:
            adapted.unload()
            for part, flag in required:
                part.requires_grad_(flag)

    @torch.no_grad()
    def weights(self, numbers: Sequence[Tensor]) -> dict[str, Tensor]:
        """The merged weights of the maps."""
        own = {f"{path}.weight": linear_at(self.model, path).weight for path in self.paths}
        return {
            name: merged(weight_OI, first_RI, second_OR, self.kept_share)
            for (name, weight_OI), first_RI, second_OR in zip(own.items(), numbers[::2], numbers[1::2], strict=True)
        }


def merged(weight_OI: Tensor, first_RI: Tensor, second_OR: Tensor, kept_share: float = 1.0) -> Tensor:
    """W + α B A, in fp32, rounded once to the weight's dtype; shape (O, I). kept_share: α."""
    first_RI, second_OR = (part.to(weight_OI.device, torch.float32) for part in (first_RI, second_OR))
    return (weight_OI.float() + kept_share * (second_OR @ first_RI)).to(weight_OI.dtype)


def _parameter(number: Tensor) -> nn.Parameter:
    return number if isinstance(number, nn.Parameter) else nn.Parameter(number, requires_grad=False)
