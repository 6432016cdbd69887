"""How anything is trained: the order of sequences, the course of the learning rate.

Shape suffix: B batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

BETAS = (0.9, 0.99)
"""AdamW's betas, as published."""


def rate_for_cut(rate: float, cut: float) -> float:
    """A learning rate that grows with the cut, in two significant digits, so that it can be written down and asked for.

    rate: for a cut of a half; so it is for a fifth, by (2 · cut)^¾ = ½, half of that.  cut: share of what can be cut
    that has to go. The way that numbers travel is the rate times the steps: a mild cut needs little change, and what
    goes beyond that suits the calibration text alone.
    """
    return float(f"{rate * (2 * cut) ** 0.75:.1e}")


@dataclass(frozen=True)
class Schedule:
    """Length and course of one training.

    steps: optimiser steps in all.  kind: `GateOptions.schedule`.  warmup: share of the steps over which the learning
    rate rises in a straight line before that course begins.
    """

    steps: int
    kind: str
    warmup: float = 0.0

    def factor(self, step: int) -> float:
        """What the learning rate is multiplied by at a step, between 0 and 1."""
        rising = round(self.warmup * self.steps)
        if step < rising:
            return (step + 1) / (rising + 1)
        if self.kind == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / (self.steps - rising)))


def batches(sequences: int, epochs: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Places of sequences in batches of shape (B,): each epoch takes all of them once, in a new random order."""
    generator = torch.Generator("cpu").manual_seed(seed)
    for _ in range(epochs):
        yield from torch.randperm(sequences, generator=generator, device="cpu").split(batch_size)


def training_steps(sequences: int, epochs: int, batch_size: int) -> int:
    """Optimiser steps in all."""
    return epochs * -(-sequences // batch_size)
