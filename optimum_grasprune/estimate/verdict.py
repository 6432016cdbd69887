"""Whether what a run needs is there, and what would need less. Pure, from needs and a machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ..config import RunnerName
from ..errors import ResourceError
from ..running import refusal
from .job import Job, runners_for
from .machine import Machine
from .needs import Needs, Part, Place, needs_of

PLACES: tuple[Place, ...] = ("device", "host", "output", "temporary")
SHORTEST = 64
"""Tokens of a sequence below which none is proposed: what is calibrated on less says little of a text."""

WORTH_A_LINE = 2**30
"""Bytes from which on a run says what it needs: what takes less is nobody's concern."""

OVERRIDE = "--ignore-estimate starts it all the same"


@dataclass(frozen=True)
class Shortage:
    """Something that a run cannot go on without, and of which there is less. needed, free: bytes."""

    place: Place
    needed: int
    free: int


@dataclass(frozen=True)
class Estimate:
    """What a run needs beside what there is."""

    job: Job
    needs: Needs
    machine: Machine

    @classmethod
    def of(cls, job: Job, machine: Machine) -> Estimate:
        """Of a run on a machine."""
        return cls(job, needs_of(job), machine)

    @property
    def shortages(self) -> list[Shortage]:
        """What is missing for it to run at all: weights, a step, and files; what is soft is not counted."""
        return self._missing({place: self.needs.hard(place) for place in PLACES})

    @property
    def tight(self) -> list[Shortage]:
        """What is missing for it to run as it best would, what is soft included."""
        return self._missing({place: self.needs.size(place) for place in PLACES})

    def _missing(self, needed: dict[Place, int]) -> list[Shortage]:
        if self.needs.runner == "offloaded" and self.machine.device is not None:
            # What the devices have room for beside the work need not lie in the host's memory.
            needed["host"] -= max(0, min(self.machine.devices - needed["device"], self._offloaded))
        if self.machine.one_disk:
            needed["output"] += needed["temporary"]
        found = ((place, needed[place], self.machine.free(place)) for place in PLACES)
        return [Shortage(place, size, free) for place, size, free in found if free is not None and size > free]

    @property
    def _offloaded(self) -> int:
        return self.job.sizes.in_layers * self.job.element

    @property
    def is_worth_a_line(self) -> bool:
        """Whether a user would want to know before it starts."""
        return max(map(self.needs.size, PLACES)) >= WORTH_A_LINE or bool(self.shortages)

    @property
    def footer(self) -> str:
        """What stands under the table."""
        return f"runner: {self.needs.runner}; at the peak of each place, beside what Python and its libraries take"

    @property
    def line(self) -> str:
        """In a line, what it needs most of and where."""
        peaks = [self._peak(place) for place in PLACES if self.needs.size(place)]
        return f"needed at most, {self.needs.runner}: {', '.join(peaks)}"

    def _peak(self, place: Place) -> str:
        size, free = self.needs.size(place), self.machine.free(place)
        there = "" if free is None else f" of {in_gib(free)} free"
        return f"{in_gib(size)}{there} on {self.machine.called(place)}"

    @property
    def rows(self) -> list[tuple[str, str, str, str, str]]:
        """Place, what is needed, what is free, the stage that needs most, and what takes it there."""
        rows = []
        for place in PLACES:
            if self.needs.size(place):
                peak, free = self.needs.peak(place), self.machine.free(place)
                there = "not known" if free is None else in_gib(free)
                parts = in_words(peak.largest_first(place))
                rows.append((self.machine.called(place), in_gib(peak.size(place)), there, peak.what, parts))
        return rows

    def to_dict(self) -> dict[str, object]:
        """The numbers as JSON types."""
        return {
            "runner": self.needs.runner,
            "needs": {place: self.needs.size(place) for place in PLACES},
            "free": {place: self.machine.free(place) for place in PLACES},
            "stages": {
                stage.what: {part.what: part.size for part in stage.parts if part.size} for stage in self.needs.stages
            },
            "fits": not self.shortages,
        }


def estimated(job: Job, machine: Machine, asked: RunnerName | Literal["auto"] = "auto") -> tuple[Estimate, str]:
    """The estimate of a run by the runner that is asked for, or chosen, and why it is not the first that there is.

    By "auto" it is the first that has all that it needs, then the first that can run at all, or else the first.
    """
    names = known_runners(job, machine) if asked == "auto" else [asked]
    tried = [Estimate.of(replace(job, runner=runner), machine) for runner in names]
    first = tried[0]
    found = next((each for each in tried if not each.tight), None)
    found = found or next((each for each in tried if not each.shortages), first)
    if found is first:
        return found, ""
    lacks = _largest(first.tight)
    called = machine.called(lacks.place)
    return found, f"{names[0]} needs {in_gib(lacks.needed)} on {called}, and {in_gib(lacks.free)} are free"


def known_runners(job: Job, machine: Machine) -> list[RunnerName]:
    """Those that a job could be done by: accelerate offloads, and on the host's memory alone that gains nothing."""

    def can(runner: RunnerName) -> bool:
        offloads = runner == "offloaded"
        if offloads and (job.is_on_host or not machine.accelerate):
            return False
        return runner == "whole" or refusal(job.config, job.chain, in_memory=offloads) is None

    return [runner for runner in runners_for(job.processes) if can(runner)]


def _largest(shortages: Sequence[Shortage]) -> Shortage:
    return max(shortages, key=lambda each: each.needed - each.free)


def require_fit(estimate: Estimate) -> None:
    """Raise ResourceError for a run that cannot fit, in a line that names what would."""
    if not estimate.shortages:
        return
    shortage = _largest(estimate.shortages)
    machine, place = estimate.machine, shortage.place
    peak = max(estimate.needs.stages, key=lambda stage: stage.size(place, hard=True))
    parts = in_words([part for part in peak.largest_first(place) if not part.soft])
    raise ResourceError(
        f"the run needs {in_gib(shortage.needed)} on {machine.called(place)} for {peak.what} ({parts}), and "
        f"{in_gib(shortage.free)} are free: {_advice(estimate, shortage)}; {OVERRIDE}"
    )


def _advice(estimate: Estimate, shortage: Shortage) -> str:
    if shortage.place == "output":
        return "give OUTPUT on another disk"
    if shortage.place == "temporary":
        return "the environment variable TMPDIR names another folder"
    found = None
    for words, job in alternatives(estimate.job, estimate.machine):
        other = Estimate.of(job, estimate.machine)
        if not other.shortages:
            return f"{words} needs {in_gib(other.needs.hard(shortage.place))} there"
        if found is None or other.needs.hard(shortage.place) < found[1]:
            found = words, other.needs.hard(shortage.place)
    if found is None or found[1] >= shortage.needed:
        return "no option needs less"
    return f"no option is enough; {found[0]} needs {in_gib(found[1])} there"


def alternatives(job: Job, machine: Machine) -> Iterator[tuple[str, Job]]:
    """Ways to run it in less memory, as words of a command line: those first that change nothing of what comes out."""
    if not job.config.gradient_checkpointing:
        yield "--gradient-checkpointing", job.asking(gradient_checkpointing=True)
    for runner in known_runners(job, machine):
        if runner != job.runner:
            yield f"--runner {runner}", replace(job, runner=runner)
    if job.element > 2:
        yield "--dtype bfloat16", job.asking(dtype="bfloat16")
    if job.config.batch_size > 1:
        yield "--batch-size 1", job.asking(batch_size=1)
    if job.config.recovery_batch_size > 1 and job.config.recover != "none":
        yield "--recover-batch-size 1", job.asking(recover_batch_size=1)
    length = job.length // 2
    while length >= SHORTEST:
        yield f"--seq-len {length}", job.asking(seq_len=length)
        length //= 2


def in_gib(size: int) -> str:
    """Bytes as GiB, or MiB where they are less than a tenth of one."""
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:,.0f} MiB"


def in_words(parts: Sequence[Part], most: int = 3) -> str:
    """The largest parts with their sizes."""
    return ", ".join(f"{part.what} {in_gib(part.size)}" for part in parts[:most] if part.size)
