"""How a model is run: the runner, and what it puts on a model for a while."""

from ..record import CheckUp
from .choice import runner_for
from .course import Course
from .distillation import LiveTeacher, RememberedTeacher, Teacher, Teaches, distillation_loss
from .gathered import Gathered, KnownStatistics
from .instrument import Gates, weights_given
from .offloaded import OffloadedModel
from .resumable import Resumable
from .run_state import RunState
from .runner import Runner, Training
from .state_file import digest
from .stream import LayerStream
from .streamed import StreamedModel
from .taught import Taught
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
    "OffloadedModel",
    "Pace",
    "RememberedTeacher",
    "Resumable",
    "RunState",
    "Runner",
    "StreamedModel",
    "Taught",
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
    "runner_for",
    "weights_given",
]
