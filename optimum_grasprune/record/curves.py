"""The course of trainings, as a checkpoint keeps it for whoever wants to see it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .stored import OPTIONAL, Stored

KEPT, CHANGED = "kept.", "changed."
"""What the names of readings begin with: share of a kind of units that is in the model, and share of them that is in
where it was out at the step before, or the other way round. The name of the kind follows."""


@dataclass(frozen=True, kw_only=True)
class CheckUp(Stored):
    """What texts that nothing is trained on come to after a step. losses: mean next-token loss of each, in nats."""

    step: int
    losses: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class TrainingCurves(Stored):
    """The course of one training, in points: each is the mean over the steps after the point before.

    label: what was trained, as in "gates".  steps: that it took, of several ratios those at the checkpoint's own.
    ends: last step of each point, counted over all of them.
    loss: that was trained on, in nats.  readings: what else was read at the steps, by name; None where nothing was.
    check_ups: of text that was not trained on.  kept_step: steps after which its state was best, where any said so.
    """

    label: str
    steps: int
    ends: tuple[int, ...]
    loss: tuple[float | None, ...]
    readings: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)
    check_ups: tuple[CheckUp, ...] = ()
    kept_step: int | None = field(default=None, metadata=OPTIONAL)

    def of_kinds(self, prefix: str) -> dict[str, tuple[float | None, ...]]:
        """Those of the readings that begin with `KEPT` or `CHANGED`, by the rest of their names."""
        return {name.removeprefix(prefix): points for name, points in self.readings.items() if name.startswith(prefix)}
