"""Pruning methods, one file each. A file is read when its method is first asked for: names alone load no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .registry import get_method, method_names, register

if TYPE_CHECKING:
    from ..problem import Problem
    from .base import Method
    from .selection import Selection

__all__ = ["Method", "Problem", "Selection", "get_method", "method_names", "register"]


def __getattr__(name: str) -> Any:
    if name not in ("Method", "Problem", "Selection"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import base

    return getattr(base, name)
