"""Minutes that a run takes, from the first steps of its longest stage and how much it computes in the others."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from itertools import pairwise
from time import monotonic

from ..progress import LOG_INTERVAL, Bar
from .work import Work

TIMED = 3
"""Steps that are timed."""


class Forecast:
    """Watches the bars of a run, and says once it knows how long the longest stage takes, and each training after it.

    tell: is given the line.  clock: seconds.  least: seconds to come that are worth a line.
    """

    def __init__(
        self, tell: Callable[[str], None], clock: Callable[[], float] = monotonic, least: float = LOG_INTERVAL
    ) -> None:
        self.tell, self.clock, self.least = tell, clock, least
        self._begun = clock()
        self._works: Sequence[Work] = ()
        self._awaited: set[str] = set()
        self._stage: Bar | None = None
        self._times: list[float] = []

    def expect(self, works: Sequence[Work]) -> None:
        """Take these for what the run does, in order."""
        self._works = works
        longest = max(range(len(works)), key=lambda place: works[place].passes, default=0)
        self._awaited = {work.label for work in works[longest:] if work.trains or work is works[longest]}

    def see(self, stage: Bar) -> None:
        """A stage went on."""
        if stage.label not in self._awaited:
            return
        if stage is not self._stage:
            self._stage, self._times = stage, []
        self._times.append(self.clock())
        if len(self._times) > TIMED:
            self._awaited.remove(stage.label)
            steps = [after - before for before, after in pairwise(self._times)]
            place = next(place for place, work in enumerate(self._works) if work.label == stage.label)
            self._say(statistics.median(steps), place, stage.done)

    def _say(self, seconds: float, place: int, done: int) -> None:
        """seconds: of one unit of the work at a place, of which so many are done."""
        work = self._works[place]
        left = [(work.label, max(0, work.units - done) * seconds)]
        left += [(each.label, each.passes * seconds / work.each) for each in self._works[place + 1 :]]
        to_come = sum(each for _, each in left)
        if to_come >= self.least:
            whole = self.clock() - self._begun + to_come
            parts = ", ".join(f"{label} {in_time(each)}" for label, each in left if each >= to_come / 50)
            self.tell(f"about {in_time(whole)} in all, {in_time(to_come)} of it to come: {parts}")


def in_time(seconds: float) -> str:
    """Seconds in words, in the unit that fits: "40 s", "12 min", "3.4 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
