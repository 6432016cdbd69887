"""What a record says of models: which one was pruned, and what of it is left."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from pathlib import PureWindowsPath

from transformers import PreTrainedModel

from ..families import Family, family_of
from ..loading import count_parameters
from ..units import Budget, ElementMask, UnitInventory, exact_ratio
from .record import AskedBudget, BudgetRecord, ModelIdentity, ModelSize, SharesKept


def public_name(source: str) -> str:
    """What a model or corpus is called elsewhere: its name on a hub, or the last part of its path on this machine."""
    cached = re.findall(r"models--([^/]+?)--([^/]+)/snapshots/", source)
    if cached:
        return "/".join(cached[-1])
    of_a_machine = source.startswith((".", "/", "~")) or "\\" in source or source.count("/") > 1
    if source and (of_a_machine or os.path.exists(source)):
        # Windows' rules know both slashes.
        return PureWindowsPath(os.path.abspath(source) if source.startswith(".") else source).name
    return source


def public_sources(source: str) -> list[str]:
    """Each corpus of one or several with commas between them, by its public name."""
    return [public_name(part.strip()) for part in source.split(",")]


_PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def dtype_name(model: PreTrainedModel) -> str:
    """What a model computes in, as in bfloat16."""
    return str(model.dtype).removeprefix("torch.")


def precision_of(dtypes: Iterable[str | None]) -> str:
    """What models were measured in, as in "fp32" or "fp32 and bf16". None: of results that do not say, all in fp32."""
    return " and ".join(dict.fromkeys(_PRECISIONS.get(dtype or "float32", str(dtype)) for dtype in dtypes))


def describe_model(model: PreTrainedModel) -> ModelIdentity:
    """What identifies a base model."""
    config, family = model.config, family_of(model.config)
    return ModelIdentity(
        name=public_name(config.name_or_path or ""),
        model_type=config.model_type,
        hidden_size=config.hidden_size,
        num_hidden_layers=family.num_layers(config),
        head_dim=family.head_dimension(config),
        vocab_size=config.vocab_size,
        dtype=dtype_name(model),
    )


def units_budget(
    family: Family, dense: PreTrainedModel, pruned: PreTrainedModel, budget: Budget | None
) -> BudgetRecord:
    """What is left of both totals where whole units were cut. budget: what was asked; None if it isn't known."""
    before = _size(dense, family.inventory(dense))
    after = _size(pruned, family.inventory(pruned))
    asked = None if budget is None else AskedBudget(cost=budget.cost, kv_width=budget.kv_width)
    return BudgetRecord(asked=asked, dense=before, pruned=after, kept=_shares(before, after))


def elements_budget(family: Family, dense: PreTrainedModel, mask: ElementMask, keep_ratio: float) -> BudgetRecord:
    """The same where single weights were cut: counted are those that stay, not the zeros in place of the others.

    keep_ratio: of the configuration.
    """
    parameters, kv_width = count_parameters(dense), family.inventory(dense).total_kv_width
    left = parameters - (mask.total - mask.kept_count)
    before = ModelSize(parameters=parameters, prunable=mask.total, kv_elements_per_token=kv_width)
    after = ModelSize(parameters=left, prunable=mask.kept_count, kv_elements_per_token=kv_width)
    asked = AskedBudget(cost=math.floor(exact_ratio(keep_ratio) * mask.total), kv_width=None)
    return BudgetRecord(asked=asked, dense=before, pruned=after, kept=_shares(before, after))


def _size(model: PreTrainedModel, inventory: UnitInventory) -> ModelSize:
    return ModelSize(
        parameters=count_parameters(model),
        prunable=inventory.total_cost,
        kv_elements_per_token=inventory.total_kv_width,
    )


def _shares(dense: ModelSize, pruned: ModelSize) -> SharesKept:
    return SharesKept(
        prunable=pruned.prunable / dense.prunable,
        parameters=pruned.parameters / dense.parameters,
        kv_cache=pruned.kv_elements_per_token / dense.kv_elements_per_token,
    )
