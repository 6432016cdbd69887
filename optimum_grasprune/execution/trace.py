"""What the steps of a training come to, one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from ..record import CheckUp, TrainingCurves

LOSS, KEEP_RATIO = "loss", "keep_ratio"
"""Names of the loss among the values of a step, and of the budget that the step was taken at."""

MOST_POINTS = 500
"""Of a curve: more than a figure has room for, less than the steps of a long training."""

_JOINED_AT = 256


class Trace:
    """The values of all steps so far.

    They wait where they were worked out: nothing is moved off a device, which would have to catch up, until all of them
    are asked for.
    """

    def __init__(self) -> None:
        self._values: dict[str, list[Tensor]] = {}

    def note(self, loss: Tensor, readings: Mapping[str, Tensor]) -> None:
        """Another step. loss: a scalar.  readings: as in `Trainable.readings`."""
        for name, value in {LOSS: loss, **readings}.items():
            parts = self._values.setdefault(name, [])
            parts.append(value.detach().reshape(1).float())
            if len(parts) == _JOINED_AT:
                parts[:] = [torch.cat(parts)]

    def tensors(self) -> dict[str, Tensor]:
        """The values by name, each of shape (steps,), fp32, on the CPU."""
        return {name: torch.cat(parts).cpu() for name, parts in self._values.items()}

    def take_up(self, tensors: Mapping[str, Tensor]) -> None:
        """Be as when those were all there was."""
        self._values = {name: [tensor] for name, tensor in tensors.items()}


@dataclass(frozen=True)
class Traced:
    """A training that is done.

    values: of `Trace.tensors`.  check_ups, kept_step: as in `TrainingCurves`.
    """

    label: str
    values: Mapping[str, Tensor]
    check_ups: tuple[CheckUp, ...] = ()
    kept_step: int | None = None

    def at(self, keep_ratio: float) -> Traced:
        """The same, known to be of steps that were all taken at a keep ratio."""
        ratios = torch.full_like(self.values[LOSS], keep_ratio)
        return replace(self, values={**self.values, KEEP_RATIO: ratios})

    def curves(self, keep_ratio: float) -> TrainingCurves | None:
        """The curves of those steps that were taken at a keep ratio, or of all where that is not known.

        None where there are none.
        """
        steps = torch.arange(1, len(self.values.get(LOSS, ())) + 1, device="cpu")
        if KEEP_RATIO in self.values:
            steps = steps[self.values[KEEP_RATIO] == torch.tensor(keep_ratio, dtype=torch.float32, device="cpu")]
        if not len(steps):
            return None
        bounds = point_bounds(len(steps), MOST_POINTS)
        # In the order of their names, since a state that is taken up has none of its own.
        points = {name: means(self.values[name][steps - 1], bounds) for name in sorted(self.values)}
        return TrainingCurves(
            label=self.label,
            steps=len(steps),
            ends=tuple(int(steps[last - 1]) for last in bounds[1:]),
            loss=points[LOSS],
            readings={name: of_name for name, of_name in points.items() if name not in (LOSS, KEEP_RATIO)},
            check_ups=self.check_ups,
            kept_step=self.kept_step,
        )


def point_bounds(count: int, most: int) -> list[int]:
    """Where points begin, and the last one ends, that as many values make, as evenly as can be; `most` at most."""
    points = min(count, most)
    return [count * point // points for point in range(points + 1)]


def means(values: Tensor, bounds: Sequence[int]) -> tuple[float | None, ...]:
    """Mean of each point in six digits, without what is no number; None where nothing is one. values: shape (steps,)"""
    points = [float(values[first:last].double().nanmean()) for first, last in pairwise(bounds)]
    return tuple(None if point != point else float(f"{point:.6g}") for point in points)
