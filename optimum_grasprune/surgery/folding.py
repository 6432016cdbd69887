"""Folding scales into weights, so that nothing is added at inference. Pure tensor code.

A scale multiplies what its unit feeds into the output projection (`down_proj`, `o_proj`), so it folds into that
projection's columns. For a KV head group that scales the head output, as scaling the rows of `v_proj` and its bias
would, but it touches one matrix, leaves every bias right as it stands, and no norm on the keys can undo it (Qwen3).

Shape suffixes: O output features, I input features, K units.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..families import Family
from ..units import PruningPlan

Editing = Callable[[nn.Linear], AbstractContextManager[object]]


def scale_columns(weight_OI: Tensor, scales_K: Tensor) -> Tensor:
    """Columns multiplied by the scale of their unit, in fp32, then rounded to the weight's dtype; shape (O, I).

    Each unit owns I / K neighbouring columns.
    """
    per_column_I = scales_K.to(weight_OI.device).float().repeat_interleave(weight_OI.shape[1] // len(scales_K))
    return (weight_OI.float() * per_column_I).to(weight_OI.dtype)


@torch.no_grad()
def fold_scales(pruned: PreTrainedModel, plan: PruningPlan, family: Family, editing: Editing = nullcontext) -> None:
    """Multiply the plan's scales into the output projections of an already sliced model, in place.

    editing: see `Runner.editing`.
    """
    for address, linear in family.output_projections(pruned).items():
        if (scales_K := plan.group(address).scales) is not None:
            factors_K = torch.tensor(scales_K, dtype=torch.float32, device="cpu")
            with editing(linear):
                linear.weight.copy_(scale_columns(linear.weight, factors_K))
