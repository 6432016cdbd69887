"""Turning a plan into smaller tensors: slicing, folding, and building the pruned model from them."""

from .build import dense_config, pruned_config
from .draft import (
    Draft,
    Finished,
    Narrower,
    Outline,
    OutputProjection,
    Rebuilt,
    build_pruned_model,
    drafted,
    in_memory,
    let_go,
)
from .folding import fold_scales, scale_columns
from .slicing import feature_indices, keep_units
from .spill import OnDisk

__all__ = [
    "Draft",
    "Finished",
    "Narrower",
    "OnDisk",
    "Outline",
    "OutputProjection",
    "Rebuilt",
    "build_pruned_model",
    "dense_config",
    "drafted",
    "feature_indices",
    "fold_scales",
    "in_memory",
    "keep_units",
    "let_go",
    "pruned_config",
    "scale_columns",
]
