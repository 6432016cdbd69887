"""What is to be run: every point of a sweep on every checkpoint, as often as is repeated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..writing import slug
from .checkpoints import Checkpoint
from .results import Percentiles, Run, RunOptions
from .workload import Point


@dataclass(frozen=True)
class Turn:
    """One measurement that is to be made. seed: of its requests, the same for every checkpoint."""

    checkpoint: Checkpoint
    repetition: int
    point: Point
    seed: int

    def __str__(self) -> str:
        return f"{self.checkpoint.name} at {self.point.name}, repetition {self.repetition + 1}"

    @property
    def stem(self) -> str:
        """What the names of its files begin with."""
        names = (slug(self.checkpoint.name), self.repetition + 1, slug(self.point.workload), self.point.concurrency)
        return "-".join(map(str, names))

    def measured(self, metrics: Mapping[str, float], percentiles: Percentiles | None = None) -> Run:
        """What it gave."""
        return Run(self.checkpoint.name, self.repetition, self.point.name, self.seed, dict(metrics), percentiles)


@dataclass(frozen=True)
class Plan:
    """What is to be run, and how.

    engine, mode: by name, the mode one of the engine's.  checkpoints: the dense one first.
    logs: folder for what processes print.  device: for engines that run in this process.
    trust_remote_code, revision: of all checkpoints.
    """

    engine: str
    mode: str
    checkpoints: Sequence[Checkpoint]
    points: Sequence[Point]
    logs: Path
    options: RunOptions = field(default_factory=RunOptions)
    device: str | None = None
    trust_remote_code: bool = False
    revision: str | None = None

    def turn(self, checkpoint: Checkpoint, repetition: int, number: int) -> Turn:
        """The measurement of a checkpoint at a point in a repetition. number: of the point.

        Each has a seed of its own, or an engine that caches prefixes would know the prompts.
        """
        return Turn(checkpoint, repetition, self.points[number], self.options.seed + 1000 * repetition + number)
