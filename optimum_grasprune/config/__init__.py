"""Options: in groups, one file each, so that a function asks for the group it needs.

`GRASPConfig` is all that pruning needs side by side, with what the chosen method brings along (`own`). Each field says
what it means; `flags` makes command-line options of them. Nothing here loads torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import OptionError
from .base import Flag, Options
from .budget import BudgetOptions
from .calibration import CalibrationOptions
from .deployment import DeploymentOptions
from .diagonals import DiagonalOptions
from .evaluation import EvaluationOptions
from .gates import GateOptions
from .grasp import GRASPConfig
from .least_squares import LeastSquaresOptions
from .method_options import MethodOptions, OwnOptions, StageOptions
from .needles import NeedleOptions
from .pruning import PruningOptions
from .recovery import RecoveryOptions
from .run import RunOptions
from .run_state import StateOptions
from .runner import RunnerName, RunnerOptions
from .scales import ScaleOptions
from .search import SearchOptions
from .sizes import Size
from .tasks import BackendOptions, TaskOptions

__all__ = [
    "RECIPES",
    "BackendOptions",
    "BudgetOptions",
    "CalibrationOptions",
    "DeploymentOptions",
    "DiagonalOptions",
    "EvaluationOptions",
    "Flag",
    "GRASPConfig",
    "GateOptions",
    "LeastSquaresOptions",
    "MethodOptions",
    "NeedleOptions",
    "Options",
    "OwnOptions",
    "PruningOptions",
    "RecoveryOptions",
    "RunOptions",
    "RunnerName",
    "RunnerOptions",
    "ScaleOptions",
    "SearchOptions",
    "Size",
    "StageOptions",
    "StateOptions",
    "TaskOptions",
    "by_recipe",
]

RECIPES: dict[str, Callable[..., GRASPConfig]] = {
    "quick": GRASPConfig.quick,
    "default": GRASPConfig,
    "thorough": GRASPConfig.thorough,
    "paper": GRASPConfig.paper,
}
"""Named recipes that `--recipe` offers: each takes overrides by keyword and returns a `GRASPConfig`."""


def by_recipe(name: str, **overrides: Any) -> GRASPConfig:
    """The named recipe with overrides on top; OptionError, with the names that exist, when there is none."""
    if name not in RECIPES:
        raise OptionError("recipe", name, f"no such recipe; there are {', '.join(RECIPES)}")
    return RECIPES[name](**overrides)
