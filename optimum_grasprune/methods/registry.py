"""Names of methods; in which file each stands is said in `optimum_grasprune.registry`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..registry import METHODS

if TYPE_CHECKING:
    from .base import Method

register = METHODS.register
"""Class decorator that makes a method available as `GRASPConfig(method=name)`; a name can be taken once."""


def method_names() -> tuple[str, ...]:
    """All registered names, in order of registration."""
    return METHODS.names()


def get_method(name: str) -> Method:
    """The method of that name; OptionError, with the names that exist, when there is none."""
    return METHODS.get(name)()
