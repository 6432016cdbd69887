"""Structured pruning of language models under one global budget.  (GRASPrune, arXiv 2604.19398)

Importing the package makes transformers' Auto classes load pruned checkpoints, as soon as they are there; everything
else loads when it is used. So it is quick: neither torch nor transformers is imported for it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .auto_classes import register_when_loaded

if TYPE_CHECKING:
    from .config import GRASPConfig
    from .errors import GraspruneError
    from .execution import RunState
    from .export.checkpoint import load_pruned_model
    from .pruned import PrunedModel
    from .pruner import GRASPPruner
    from .units import Budget, PruningPlan, UnitGroup, UnitInventory, UnitMask, project

_HOMES = {
    "Budget": "units",
    "GRASPConfig": "config",
    "GRASPPruner": "pruner",
    "GraspruneError": "errors",
    "PruningPlan": "units",
    "RunState": "execution",
    "PrunedModel": "pruned",
    "UnitGroup": "units",
    "UnitInventory": "units",
    "UnitMask": "units",
    "load_pruned_model": "export.checkpoint",
    "project": "units",
}

__all__ = [
    "Budget",
    "GRASPConfig",
    "GRASPPruner",
    "GraspruneError",
    "PrunedModel",
    "PruningPlan",
    "RunState",
    "UnitGroup",
    "UnitInventory",
    "UnitMask",
    "load_pruned_model",
    "project",
]

register_when_loaded()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
