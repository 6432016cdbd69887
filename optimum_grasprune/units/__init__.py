"""The prunable units of a model, choices of them, the budget, and the plan that is saved: pure."""

from .budget import Budget, attends, budget_at, exact_ratio
from .inventory import Address, UnitGroup, UnitInventory
from .kinds import FAST_MULTIPLE, FFN, KINDS, KV, UnitKind
from .masks import ElementMask, UnitMask
from .plan import GroupPlan, PruningPlan
from .projection import kept_units, project

__all__ = [
    "FAST_MULTIPLE",
    "FFN",
    "KINDS",
    "KV",
    "Address",
    "Budget",
    "ElementMask",
    "GroupPlan",
    "PruningPlan",
    "UnitGroup",
    "UnitInventory",
    "UnitKind",
    "UnitMask",
    "attends",
    "budget_at",
    "exact_ratio",
    "kept_units",
    "project",
]
