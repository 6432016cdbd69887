"""Names of methods."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import OptionError
from .base import Method

_METHODS: dict[str, type[Method]] = {}


def register(name: str) -> Callable[[type[Method]], type[Method]]:
    """Class decorator that makes a method available as `GRASPConfig(method=name)`; a name can be taken once."""

    def add(method: type[Method]) -> type[Method]:
        if name in _METHODS:
            raise ValueError(f"a method named {name!r} exists already: {_METHODS[name].__qualname__}")
        _METHODS[name] = method
        return method

    return add


def method_names() -> tuple[str, ...]:
    """All registered names, in order of registration."""
    return tuple(_METHODS)


def get_method(name: str) -> Method:
    """The method of that name; OptionError, with the names that exist, when there is none."""
    if name not in _METHODS:
        raise OptionError("method", name, f"no such method; there are {', '.join(_METHODS)}")
    return _METHODS[name]()
