"""Turning a plan into smaller tensors: slicing, folding, and building the pruned model from them."""

from .build import build_pruned_model, dense_config, pruned_config
from .folding import fold_multipliers, fold_scales, scale_columns
from .slicing import feature_indices, keep_units, slice_state

__all__ = [
    "build_pruned_model",
    "dense_config",
    "feature_indices",
    "fold_multipliers",
    "fold_scales",
    "keep_units",
    "pruned_config",
    "scale_columns",
    "slice_state",
]
