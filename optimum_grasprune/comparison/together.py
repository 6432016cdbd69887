"""Several processes that run the cells of one comparison, as one of them sees it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from ..methods.selection import scores_key
from .cells import Cell
from .claims import Claim, claimant
from .results import CellFile, FailedCell
from .shards import Shard, order

Job = Sequence[Cell]
"""What one process does as a whole: a cell, or all cells of a method that share one training of gates."""


def jobs_of(cells: Sequence[Cell], whole: Callable[[Cell], bool]) -> list[Job]:
    """The jobs that cells make, in their order. whole: whether all cells of a cell's entry are one job."""
    jobs: list[list[Cell]] = []
    for cell in cells:
        if jobs and jobs[-1][0].entry == cell.entry and whole(cell):
            jobs[-1].append(cell)
        else:
            jobs.append([cell])
    return [tuple(job) for job in jobs]


class Together:
    """The jobs of a comparison, shared with other processes.

    shard: which one this is.  path_of: the file of a cell; a job is claimed by that of its first one.
    stored: what the file of a cell holds, if it is of the same inputs.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        shard: Shard,
        path_of: Callable[[Cell], Path],
        stored: Callable[[Cell], CellFile | None],
    ) -> None:
        own, others = order([scores_key(job[0].config) for job in jobs], shard)
        self._jobs = [jobs[place] for place in (*own, *others)]
        self._own = {cell.file_name for place in own for cell in jobs[place]}
        self._path_of, self._stored = path_of, stored

    def run(self, run: Callable[[Job], None]) -> None:
        """Call `run` with each job that nobody else has claimed, one after the other, until there are none."""
        waiting = list(self._jobs)
        while (found := self._claimed(waiting)) is not None:
            job, claim = found
            with claim:
                run(job)
            waiting.remove(job)

    def results(self, known: Collection[str]) -> tuple[dict[str, CellFile], list[str]]:
        """What other processes have finished, by the names of files, and a few words on each cell that they have not.

        known: names of files that are not looked at.
        """
        finished: dict[str, CellFile] = {}
        running = []
        for job in self._jobs:
            holder = claimant(self._path_of(job[0]))
            for cell in (cell for cell in job if cell.file_name not in known):
                stored = self._stored(cell)
                if stored is None or (holder is not None and isinstance(stored.result, FailedCell)):
                    running.append(f"{cell.name} ({holder or 'no process'})")
                else:
                    finished[cell.file_name] = stored
        return finished, running

    def _claimed(self, jobs: list[Job]) -> tuple[Job, Claim] | None:
        """The first job that is not done and that nobody else works on, and the claim on it; others' done ones go."""
        for job in list(jobs):
            if self._is_done(job):
                jobs.remove(job)
            elif (claim := Claim.take(self._path_of(job[0]))) is not None:
                if not self._is_done(job):  # by another process, just now
                    return job, claim
                claim.release()
        return None

    def _is_done(self, job: Job) -> bool:
        return all(map(self._is_settled, job))

    def _is_settled(self, cell: Cell) -> bool:
        """Whether a cell needs no run: a failure is tried again by the process whose share it is in, and no other."""
        stored = self._stored(cell)
        return stored is not None and not (cell.file_name in self._own and isinstance(stored.result, FailedCell))
