"""Statistics of what a model makes of calibration sequences."""

from .base import Collector, Statistic
from .moments import MOMENTS, InputMoments, Moments, finite
from .sensitivity import PER_SEQUENCE, PER_TOKEN, Sensitivity, squared_per_sequence, squared_per_token
from .token_weights import TOKEN_WEIGHTS, TokenWeights

__all__ = [
    "MOMENTS",
    "PER_SEQUENCE",
    "PER_TOKEN",
    "TOKEN_WEIGHTS",
    "Collector",
    "InputMoments",
    "Moments",
    "Sensitivity",
    "Statistic",
    "TokenWeights",
    "finite",
    "squared_per_sequence",
    "squared_per_token",
]
