"""The values of the named recipes, over the defaults of `GRASPConfig`."""

from typing import Any

PAPER: dict[str, Any] = {
    "method": "grasprune",
    "keep_ratio": 0.5,
    "budget": "prunable",
    "dataset": "wikitext2",
    "dataset_split": "train",
    "num_samples": 512,
    "seq_len": 512,
    "held_out": 0,
    "epochs": 4,
    "batch_size": 1,
    "learning_rate": 1e-2,
    "schedule": "constant",
    "kl_weight": 0.0,
    "temperature": 1.5,
    "start": "zero",
    "budget_warmup": 0.0,
    "snapshots": 1,
    "search_trials": 0,
    "compensation": "scales",
    "scale_samples": 512,
    "scale_epochs": 1,
    "scale_learning_rate": 1e-2,
    "dtype": "bfloat16",
}
QUICK: dict[str, Any] = {
    "num_samples": 192,
    "seq_len": 256,
    "scale_samples": 128,
    "diagonal_samples": 224,
    "snapshots": 2,
    "budget_warmup": 0.0,
}
THOROUGH: dict[str, Any] = {"search_trials": 256, "search_samples": 16, "diagonal_epochs": 2}
