"""The model families that can be pruned, one folder each. Importing this makes the Auto classes load pruned models."""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig

from ..errors import UnsupportedFamilyError
from .base import (
    Block,
    Family,
    Projection,
    PrunedClasses,
    SizeFields,
    Slot,
    Unsupported,
    inventory_of,
    linear_at,
    linears,
    unit_features,
)
from .gemma3 import GEMMA3
from .llama import LLAMA
from .ministral import MINISTRAL
from .mistral import MISTRAL
from .opt import OPT
from .phi3 import PHI3
from .qwen2 import QWEN2
from .qwen3 import QWEN3
from .unsupported import kind_of

FAMILIES: dict[str, Family] = {}
"""The families by name."""

__all__ = [
    "FAMILIES",
    "Block",
    "Family",
    "Projection",
    "PrunedClasses",
    "SizeFields",
    "Slot",
    "Unsupported",
    "family_of",
    "family_of_type",
    "inventory_of",
    "kind_of",
    "linear_at",
    "linears",
    "register",
    "unit_features",
    "unsupported",
]


def register(family: Family) -> Family:
    """Make a family known, here and to transformers' Auto classes; a name and a model type can be taken once."""
    for other in FAMILIES.values():
        if taken := {other.name, *other.model_types} & {family.name, *family.model_types}:
            raise ValueError(f"{', '.join(sorted(taken))} is of the family {other.name} already")
    classes = family.pruned
    AutoConfig.register(family.pruned_type, classes.config, exist_ok=True)
    AutoModel.register(classes.config, classes.model, exist_ok=True)
    AutoModelForCausalLM.register(classes.config, classes.causal_lm, exist_ok=True)
    FAMILIES[family.name] = family
    return family


for _family in (LLAMA, MISTRAL, MINISTRAL, QWEN2, QWEN3, PHI3, GEMMA3, OPT):
    register(_family)


def family_of(config: PreTrainedConfig) -> Family:
    """The family of a model.

    Raises UnsupportedFamilyError, with the supported ones, when there is none, and ModelError for a configuration that
    is of no whole model: without layers, FFN channels or heads.
    """
    family = family_of_type(config.model_type)
    if family is None:
        raise unsupported(config.model_type, kind_of(config))
    family.check(config)
    return family


def family_of_type(model_type: str) -> Family | None:
    """The family of this model type, dense or pruned; None when there is none."""
    return next((family for family in FAMILIES.values() if model_type in family.model_types), None)


def unsupported(model_type: object, kind: str | None = None) -> UnsupportedFamilyError:
    """The error for a model type that has no family, with those that have one. kind: what it is, in words."""
    supported = ", ".join(f"{family.name} ({', '.join(family.model_types)})" for family in FAMILIES.values())
    what = f"model type {model_type!r}" + (f", {kind}," if kind else "")
    return UnsupportedFamilyError(f"{what} is not supported; supported are: {supported}")
