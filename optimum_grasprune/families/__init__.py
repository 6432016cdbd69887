"""The model families that can be pruned, one file each."""

from __future__ import annotations

from transformers import PreTrainedConfig

from ..errors import ModelError, UnsupportedFamilyError
from .base import Coupling, Family, head_dimension
from .llama import LLAMA

FAMILIES: tuple[Family, ...] = (LLAMA,)

__all__ = ["FAMILIES", "Coupling", "Family", "family_of", "head_dimension", "unsupported"]


def family_of(config: PreTrainedConfig) -> Family:
    """The family of a model.

    Raises UnsupportedFamilyError, with the supported ones, when there is none, and ModelError for a configuration that
    is of no whole model: without layers, FFN channels or heads.
    """
    for family in FAMILIES:
        if config.model_type in family.model_types:
            _check_sizes(config)
            return family
    raise unsupported(config.model_type)


def unsupported(model_type: object) -> UnsupportedFamilyError:
    """The error for a model type that has no family, with those that have one."""
    supported = ", ".join(f"{family.name} ({', '.join(family.model_types)})" for family in FAMILIES)
    return UnsupportedFamilyError(f"model type {model_type!r} is not supported; supported are: {supported}")


def _check_sizes(config: PreTrainedConfig) -> None:
    for size in ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size"):
        if (value := getattr(config, size, 1)) < 1:
            raise ModelError(f"the model's configuration is of no whole model: {size} is {value}")
    queries = config.num_attention_heads
    keys = getattr(config, "num_key_value_heads", queries)
    if queries % keys:
        raise ModelError(f"the model has {queries} attention heads, no multiple of its {keys} key-value heads")
