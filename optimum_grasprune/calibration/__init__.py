"""Statistics of what a model makes of calibration sequences."""

from .collect import collect_moments, inputs_of
from .sensitivity import sensitivity, squared_per_sequence, squared_per_token
from .statistics import Moments

__all__ = [
    "Moments",
    "collect_moments",
    "inputs_of",
    "sensitivity",
    "squared_per_sequence",
    "squared_per_token",
]
