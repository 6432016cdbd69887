"""What `grasp_report.json` holds: the numbers behind the figures of a checkpoint's report.

They stand apart from `grasp_config.json`, since nothing is made again from them: a checkpoint without them is whole.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from .curves import TrainingCurves
from .scores import ScoreDistribution
from .stored import Stored, check_format

NUMBERS_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class ReportNumbers(Stored):
    """How a checkpoint came to be. trainings: in their order.  scores: that units were chosen by, if any are known."""

    format: int = NUMBERS_FORMAT
    trainings: tuple[TrainingCurves, ...] = ()
    scores: ScoreDistribution | None = None

    def without(self, labels: Collection[str]) -> ReportNumbers:
        """The same but for the trainings of these labels."""
        return replace(self, trainings=tuple(each for each in self.trainings if each.label not in labels))

    @classmethod
    def arranged(cls, values: Any) -> Any:
        """The values as the fields have them; ValueError where a later version wrote them."""
        if isinstance(values, Mapping):
            check_format(values.get("format"), NUMBERS_FORMAT)
        return super().arranged(values)
