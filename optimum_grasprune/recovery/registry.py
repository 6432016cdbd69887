"""Names of recovery stages, and of the chains of them that `--compensation` offers.

Nothing here loads torch, so that a configuration can be checked without it: a line below says where the class of a
stage stands, and its file is read when the stage is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ..errors import OptionError
from ..registry import STAGES

if TYPE_CHECKING:
    from .base import Stage

CHAINS: dict[str, tuple[str, ...]] = {"none": (), "both": ("least_squares", "scales")}
"""The values of `compensation` that are no single stage: stages that refit weights first, then those that train."""

_OWN = "auto"
"""The value of `compensation` that leaves the chain to the method."""

_STAGES: dict[str, str | type[Stage]] = {}


def register(name: str, stage: str | type[Stage]) -> None:
    """Make a stage available as `GRASPConfig(compensation=name)` and in chains; a name can be taken once.

    stage: its class, or where that stands, as "package.module:Class". What a class holds as `Options`, a subclass of
    `StageOptions`, becomes options of `GRASPConfig`.
    """
    if name in _STAGES or name in CHAINS or name == _OWN:
        raise ValueError(f"a stage or chain named {name!r} exists already")
    if not isinstance(stage, str) and hasattr(stage, "Options"):
        STAGES.register(name)(stage)
    _STAGES[name] = stage


def stage_names() -> tuple[str, ...]:
    """All registered names, in order of registration."""
    return tuple(_STAGES)


def get_stage(name: str) -> type[Stage]:
    """The class of that name; OptionError, with the names that exist, when there is none."""
    if name not in _STAGES:
        raise OptionError("compensation", name, f"no such stage; there are {', '.join(_STAGES)}")
    stage = _STAGES[name]
    if isinstance(stage, str):
        module, _, class_name = stage.partition(":")
        stage = _STAGES[name] = getattr(import_module(module), class_name)
    return stage


def chain_names() -> tuple[str, ...]:
    """What `compensation` can be beside "auto": a chain, or a stage alone."""
    return (*(name for name in CHAINS if not CHAINS[name]), *_STAGES, *(name for name in CHAINS if CHAINS[name]))


def stages_in(chain: str) -> tuple[str, ...]:
    """Names of the stages of a chain, in order. chain: one of `chain_names`."""
    return CHAINS.get(chain, (chain,))


register("scales", "optimum_grasprune.recovery.scales:Scales")
register("least_squares", "optimum_grasprune.recovery.least_squares:LeastSquares")
register("bias", "optimum_grasprune.recovery.bias:MeanBias")
register("energy", "optimum_grasprune.recovery.energy:RowEnergy")
