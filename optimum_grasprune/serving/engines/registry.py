"""Names of engines, and in which file each stands; it is read when the engine is first asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import OptionError
from ...registry import Registry

if TYPE_CHECKING:
    from .base import Engine

ENGINES: Registry[type[Engine]] = Registry("engine", "engine")
"""The engines that a benchmark can run; the first that has a mode is the one that runs it unless another is named."""

register = ENGINES.register
"""Class decorator that makes an engine available as `--engine NAME`; a name can be taken once."""

ENGINES.declare("vllm", "optimum_grasprune.serving.engines.vllm.engine")
ENGINES.declare("transformers", "optimum_grasprune.serving.engines.transformers")

DEFAULT_MODE = "serve"


def first_with(mode: str) -> str:
    """The first engine that has a mode; OptionError, with the modes that there are, when none has."""
    modes: list[str] = []
    for name in ENGINES.names():
        found = ENGINES.get(name).modes
        if mode in found:
            return name
        modes += (other for other in found if other not in modes)
    raise OptionError("mode", mode, f"no such mode; there are {', '.join(modes)}")


def chosen(engine: str | None, mode: str | None) -> tuple[str, str]:
    """(engine, mode) by what was asked for: an engine's first mode, or the first engine with a mode.

    Raises OptionError when there is no such engine, or when it has no such mode.
    """
    if engine is None:
        mode = DEFAULT_MODE if mode is None else mode
        return first_with(mode), mode
    modes = tuple(ENGINES.get(engine).modes)
    if mode is not None and mode not in modes:
        raise OptionError("mode", mode, f"no such mode of the engine {engine}; there are {', '.join(modes)}")
    return engine, modes[0] if mode is None else mode
