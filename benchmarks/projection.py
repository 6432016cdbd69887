"""Seconds that projecting a million units onto the budget takes, beside one gate-training step of a real model.

    python benchmarks/projection.py MODEL [--units 1000000] [--repeats 7] [--device cuda] [--dtype float32]

Projection runs at every training step, so it must vanish beside it. The step is measured on MODEL as it is; a model
with a million units is many times larger, so the share printed here is an upper bound. Beside them stand the units of
published shapes, each with several requests: the smallest widths bind, the KV cache is capped, widths are aligned.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from optimum_grasprune import Budget, GRASPConfig, UnitGroup, UnitInventory
from optimum_grasprune.config import BudgetOptions
from optimum_grasprune.dummy import shape_config
from optimum_grasprune.execution import WholeModel
from optimum_grasprune.families import family_of
from optimum_grasprune.gates import train_gates
from optimum_grasprune.loading import count_parameters, load_model
from optimum_grasprune.record.describe import dtype_name
from optimum_grasprune.units import FFN, KV, kept_units

LAYERS = 80


def median_seconds(work: Callable[[], object], repeats: int) -> float:
    """Median over repeated runs, after one that is not counted."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


REQUESTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "smallest widths bind": {},
    "at least 256 channels": {"min_ffn_channels": 256},
    "KV cache capped": {"kv_keep_ratio": 0.5},
    "multiples of 64": {"ffn_multiple_of": 64},
}


def of_shape(shape: str, repeats: int, device: torch.device) -> dict[str, Any]:
    """Median seconds for the units of a published model, by request."""
    config = shape_config(shape)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    inventory = family_of(config).inventory(model)
    scores_U = torch.randn(inventory.num_units, generator=torch.Generator().manual_seed(0)).to(device)
    poor_U = scores_U.clone()
    for group in inventory.groups[:2]:
        poor_U[inventory.slice_of(group.address)] -= 100  # nothing of a layer would stay
    seconds = {}
    for request, options in REQUESTS.items():
        budget = Budget.resolve(BudgetOptions(keep_ratio=0.5, **options), inventory, inventory.total_cost)
        given_U = poor_U if request == "smallest widths bind" else scores_U
        seconds[request] = round(timed(given_U, inventory, budget, repeats), 5)
    return {"units": inventory.num_units, "seconds": seconds}


def timed(scores_U: Tensor, inventory: UnitInventory, budget: Budget, repeats: int) -> float:
    """Median seconds of one projection, until its mask is there."""

    def work() -> None:
        kept_units(scores_U, inventory, budget)
        if scores_U.device.type == "cuda":
            torch.cuda.synchronize(scores_U.device)

    return median_seconds(work, repeats)


def large_inventory(units: int) -> UnitInventory:
    """Eighty layers like LLaMA-2-70B's, widened or narrowed to that many units."""
    groups = []
    for layer in range(LAYERS):
        groups += [
            UnitGroup(layer, KV, 8, 18 * 128 * 8192, 256),
            UnitGroup(layer, FFN, units // LAYERS - 8, 3 * 8192),
        ]
    return UnitInventory(tuple(groups))


def main() -> None:
    """Measure both, print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--units", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--dtype", default="auto", help="that the model computes in; its own by default")
    parser.add_argument("--shapes", nargs="*", default=["llama-2-7b", "llama-3.1-8b"], help="published shapes")
    args = parser.parse_args()

    inventory = large_inventory(args.units)
    config = GRASPConfig(keep_ratio=0.5, num_samples=1, seq_len=512, epochs=1)
    budget = Budget.resolve(config, inventory, inventory.total_cost)
    scores = torch.randn(inventory.num_units, generator=torch.Generator().manual_seed(0)).to(args.device)
    projection = timed(scores, inventory, budget, args.repeats)

    model = load_model(args.model, dtype=args.dtype).to(args.device)
    family = family_of(model.config)
    units = family.inventory(model)
    limit = Budget.resolve(config, units, count_parameters(model))
    tokens = torch.randint(model.config.vocab_size, (1, 512), generator=torch.Generator().manual_seed(0))
    own_scores = torch.randn(units.num_units, generator=torch.Generator().manual_seed(0)).to(args.device)
    own = timed(own_scores, units, limit, args.repeats)
    step = median_seconds(lambda: train_gates(WholeModel(model), limit, tokens, config), args.repeats)
    result = {
        "units": inventory.num_units,
        "projection_seconds": round(projection, 4),
        "model": args.model,
        "model_units": units.num_units,
        "model_projection_seconds": round(own, 4),
        "gate_step_seconds": round(step, 4),
        "dtype": dtype_name(model),
        "share": round(projection / step, 4),
        "shapes": {shape: of_shape(shape, args.repeats, args.device) for shape in args.shapes},
        "device": torch.cuda.get_device_name(args.device) if args.device.type == "cuda" else str(args.device),
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
