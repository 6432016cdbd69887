"""How a model is run: the runner, and what it puts on a model for a while."""

from ..record import CheckUp
from .course import Course
from .distillation import LiveTeacher, RememberedTeacher, Teacher, Teaches
from .gathered import Gathered, KnownStatistics
from .instrument import Gates, weights_given
from .loss import distillation_loss
from .resumable import Resumable
from .run_state import RunState
from .runner import Runner, Training
from .state_file import digest
from .stream import LayerStream
from .trace import Trace, Traced
from .trainable import OfUnits, Pace, Trainable, UnitMultipliers
from .whole import WholeModel

__all__ = [
    "CheckUp",
    "Course",
    "Gates",
    "Gathered",
    "KnownStatistics",
    "LayerStream",
    "LiveTeacher",
    "OfUnits",
    "Pace",
    "RememberedTeacher",
    "Resumable",
    "RunState",
    "Runner",
    "Teacher",
    "Teaches",
    "Trace",
    "Traced",
    "Trainable",
    "Training",
    "UnitMultipliers",
    "WholeModel",
    "digest",
    "distillation_loss",
    "weights_given",
]
