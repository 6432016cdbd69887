"""Names of recovery stages; in which file each stands is said in `optimum_grasprune.registry`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..registry import STAGES, chain_names, stages_in

if TYPE_CHECKING:
    from .base import Stage

__all__ = ["chain_names", "get_stage", "register", "stage_names", "stages_in"]

register = STAGES.register
"""Class decorator that makes a stage available as `GRASPConfig(compensation=name)` and in chains."""


def stage_names() -> tuple[str, ...]:
    """All registered names, in order of registration."""
    return STAGES.names()


def get_stage(name: str) -> type[Stage]:
    """The class of that name; OptionError, with the names that exist, when there is none."""
    return STAGES.get(name)
