"""How a model is run: the runner, and what it puts on a model for a while."""

from ..record import CheckUp
from .choice import runner_for
from .course import Course
from .distillation import LiveTeacher, RememberedTeacher, Teacher, Teaches, may_be_held
from .gathered import Gathered, KnownStatistics
from .in_place import cut_when_run, put_in_place
from .instrument import Gates, weights_given
from .loss import distillation_loss
from .offloaded import OffloadedModel
from .peers import Peers
from .processes import Launch, Processes, joined
from .resumable import Resumable
from .run_state import RunState
from .runner import Runner, Training
from .several_processes import SeveralProcesses, shared
from .shared_state import SharedState
from .state_file import digest
from .stream import LayerStream
from .streamed import StreamedModel
from .taught import Taught
from .trace import Trace, Traced
from .trainable import OfUnits, Pace, Trainable, UnitMultipliers
from .turns import Following, InTurns, Member, following, strength, turns
from .whole import WholeModel

__all__ = [
    "CheckUp",
    "Course",
    "Following",
    "Gates",
    "Gathered",
    "InTurns",
    "KnownStatistics",
    "Launch",
    "LayerStream",
    "LiveTeacher",
    "Member",
    "OfUnits",
    "OffloadedModel",
    "Pace",
    "Peers",
    "Processes",
    "RememberedTeacher",
    "Resumable",
    "RunState",
    "Runner",
    "SeveralProcesses",
    "SharedState",
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
    "cut_when_run",
    "digest",
    "distillation_loss",
    "following",
    "joined",
    "may_be_held",
    "put_in_place",
    "runner_for",
    "shared",
    "strength",
    "turns",
    "weights_given",
]
