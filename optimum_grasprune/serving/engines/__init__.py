"""What runs a checkpoint, one file or folder for each engine; `registry.py` says where each stands."""

from .base import Engine, Mode, Session
from .registry import ENGINES, register

__all__ = ["ENGINES", "Engine", "Mode", "Session", "register"]
