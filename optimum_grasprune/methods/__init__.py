"""Pruning methods, one file each. Importing a file registers its method."""

from . import grasprune, random
from .base import Method, Task
from .registry import get_method, method_names, register

__all__ = ["Method", "Task", "get_method", "grasprune", "method_names", "random", "register"]
