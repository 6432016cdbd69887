"""How a model is run: the runner, and what it puts on a model for a while."""

from .distillation import Teacher, distillation_loss
from .gathered import Gathered
from .instrument import Gates
from .runner import Runner, Training
from .stream import LayerStream
from .trainable import OfUnits, Pace, Trainable, UnitMultipliers
from .whole import WholeModel

__all__ = [
    "Gates",
    "Gathered",
    "LayerStream",
    "OfUnits",
    "Pace",
    "Runner",
    "Teacher",
    "Trainable",
    "Training",
    "UnitMultipliers",
    "WholeModel",
    "distillation_loss",
]
