"""Pruning methods, one file each. Importing a file registers its method."""

from . import fasp, fisher, flap, grasprune, magnitude, random, statistical, taylor, wanda_sp
from .base import Method, Task
from .registry import get_method, method_names, register

__all__ = [
    "Method",
    "Task",
    "fasp",
    "fisher",
    "flap",
    "get_method",
    "grasprune",
    "magnitude",
    "method_names",
    "random",
    "register",
    "statistical",
    "taylor",
    "wanda_sp",
]
