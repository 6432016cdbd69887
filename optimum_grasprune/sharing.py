"""What a run through several keep ratios does once for all of them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from .execution import RememberedTeacher, Runner
from .record import Judgement, TrainedWith
from .units import PruningPlan

Result = TypeVar("Result")


@dataclass(frozen=True)
class Decision:
    """What was chosen on held-out text at one ratio, and holds for all.

    keep_ratio: where.  candidate: its name.  plan: what it keeps there, as it is refitted.
    stages, settings: of those that refit its weights, before anything is trained.
    judgements: all that was measured to choose.
    """

    keep_ratio: float
    candidate: str
    plan: PruningPlan
    stages: tuple[str, ...]
    settings: Mapping[str, float]
    judgements: tuple[Judgement, ...]


class Sharing:
    """The state of a run through several ratios.

    runner: the dense model.  keep_ratios: largest first.
    depends: whether what comes out at a ratio may depend on the others: then choices and trainings are for all.
    models: what is trained together, by ratio.  numbers: what that came to for each.
    """

    def __init__(self, runner: Runner, keep_ratios: Sequence[float], *, depends: bool = True) -> None:
        self.keep_ratios, self.depends = tuple(keep_ratios), depends
        self.teacher = RememberedTeacher(runner)
        self.decision: Decision | None = None
        self.models: Mapping[float, TrainedWith] = {}
        self.numbers: Mapping[float, Tensor] = {}
        self._done: dict[Hashable, Any] = {}

    def once(self, what: Hashable, work: Callable[[], Result]) -> Result:
        """What the work comes to, done when it is first asked for. what: names it, with all that it depends on."""
        if what not in self._done:
            self._done[what] = work()
        return self._done[what]

    def trained_with(self, keep_ratio: float) -> tuple[TrainedWith, ...]:
        """The models that this ratio's was trained together with, largest first."""
        return tuple(self.models[other] for other in self.keep_ratios if other != keep_ratio)
