"""The model families that can be pruned, one file each."""

from __future__ import annotations

from transformers import PreTrainedConfig

from ..errors import UnsupportedFamilyError
from .base import Coupling, Family, head_dimension
from .llama import LLAMA

FAMILIES: tuple[Family, ...] = (LLAMA,)

__all__ = ["FAMILIES", "Coupling", "Family", "family_of", "head_dimension"]


def family_of(config: PreTrainedConfig) -> Family:
    """The family of a model; UnsupportedFamilyError, with the supported ones, when there is none."""
    for family in FAMILIES:
        if config.model_type in family.model_types:
            return family
    supported = ", ".join(f"{family.name} ({', '.join(family.model_types)})" for family in FAMILIES)
    raise UnsupportedFamilyError(f"model type {config.model_type!r} is not supported; supported are: {supported}")
