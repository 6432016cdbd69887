"""What a run needs and takes, told before it starts: memory, disk, and, after its first steps, minutes."""

from .forecast import Forecast
from .job import Job, runners_for
from .machine import Machine
from .needs import Needs, Part, Stage, needs_of
from .verdict import Estimate, estimated, known_runners, require_fit
from .work import Work, works_of

__all__ = [
    "Estimate",
    "Forecast",
    "Job",
    "Machine",
    "Needs",
    "Part",
    "Stage",
    "Work",
    "estimated",
    "known_runners",
    "needs_of",
    "require_fit",
    "runners_for",
    "works_of",
]
