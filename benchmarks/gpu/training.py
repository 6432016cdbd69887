"""How long pruning takes at a real size, on random weights, beside the floor of the hardware.

    python benchmarks/gpu/training.py --method grasprune --output benchmarks/results/gpu
    python benchmarks/gpu/training.py --method fasp --output benchmarks/results/gpu
    python benchmarks/gpu/training.py --method default --shape llama-3.1-8b --card 24 --output benchmarks/results/gpu
    python benchmarks/gpu/training.py --shape tiny --device cpu --sequences 8 --seq-len 64 --epochs 1 --output out

The model is built on the device, so no file of its size is written, and the project's own code prunes it. Random
weights and tokens take the same time as real ones. `grasprune` is the published gate training alone, with `--steps N`
so many steps of it, from which the whole is extrapolated; the result says so. `fasp` and `default`, which is the
default recipe, are whole prunings. With `--card GIB` no more memory of the card can be had than that.

The floor is the operations that cannot be avoided, divided by the rate that the device reaches in a large product.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from floor import forward_operations, gate_step_operations
from machine import describe, matrix_rate, parser, peak_bytes, reset_peak, save
from transformers import AutoModelForCausalLM, PreTrainedModel

from optimum_grasprune import Budget, GRASPConfig, GRASPPruner
from optimum_grasprune.dummy import dummy_tokenizer, shape_config
from optimum_grasprune.execution import WholeModel
from optimum_grasprune.execution.training import training_steps
from optimum_grasprune.families import family_of
from optimum_grasprune.families.shape import model_shape
from optimum_grasprune.gates import train_gates
from optimum_grasprune.loading import count_parameters
from optimum_grasprune.methods import get_method

WARM_UP_STEPS = 3
"""Gate steps before the clock starts: kernels are chosen and memory is reserved in them."""
HELD_OUT = 64
"""Sequences of text beside those that the default recipe draws: it holds out 32, at most an eighth of all."""


def random_model(shape: str, device: torch.device) -> PreTrainedModel:
    """A model of this shape in bf16 with random weights, made where it is to run."""
    with torch.device(device):
        return AutoModelForCausalLM.from_config(shape_config(shape), dtype=torch.bfloat16).eval()


def time_gates(model: PreTrainedModel, args: argparse.Namespace, rate: float) -> dict[str, Any]:
    """Seconds of the published gate training: one sequence a step, `epochs` passes."""
    family = family_of(model.config)
    inventory = family.inventory(model)
    whole = training_steps(args.sequences, args.epochs, 1)
    steps = min(args.steps or whole, whole)
    # A shortened run is one pass over as many sequences as it has steps.
    sequences, epochs = (args.sequences, args.epochs) if steps == whole else (steps, 1)
    config = GRASPConfig.paper(num_samples=sequences, seq_len=args.seq_len, epochs=epochs, seed=args.seed)
    budget = Budget.resolve(config, inventory, count_parameters(model))
    generator = torch.Generator().manual_seed(args.seed)
    tokens = torch.randint(model.config.vocab_size, (sequences, args.seq_len), generator=generator)
    short = config.model_copy(update={"epochs": 1})
    train_gates(WholeModel(model), budget, tokens[:WARM_UP_STEPS], short)
    reset_peak(args.device)
    start = time.perf_counter()
    train_gates(WholeModel(model), budget, tokens, config)
    step = (time.perf_counter() - start) / steps
    floor = gate_step_operations(model_shape(model, family), args.seq_len) / rate
    return {
        "steps": whole,
        "steps_run": steps,
        "extrapolated": steps < whole,
        "step_seconds": step,
        "seconds": step * whole,
        "floor_seconds": floor * whole,
        "times_the_floor": step / floor,
    }


def time_fasp(model: PreTrainedModel, args: argparse.Namespace, rate: float) -> dict[str, Any]:
    """Seconds of the whole pruning by FASP. Its floor is one forward pass."""
    config = GRASPConfig(
        method="fasp",
        keep_ratio=0.5,
        num_samples=args.sequences,
        statistic_samples=args.sequences,
        seq_len=args.seq_len,
        seed=args.seed,
        dtype="bfloat16",
    )
    forward = forward_operations(model_shape(model, family_of(model.config)), args.seq_len)
    result, _ = _time_pruning(model, config, args.sequences)
    return _beside_floor(result, args.sequences * forward / rate)


def time_default(model: PreTrainedModel, args: argparse.Namespace, rate: float) -> dict[str, Any]:
    """Seconds of the whole pruning by the default recipe.

    Its floor is a step for every sequence that gates, sensitivities and diagonals learn from, those of the diagonals in
    the smaller model, and a forward pass for each of these and for the Gram matrices in the dense one.
    """
    config = GRASPConfig(
        keep_ratio=0.5, num_samples=args.sequences, seq_len=args.seq_len, seed=args.seed, dtype="bfloat16"
    )
    statistics = get_method(config.method).statistic_samples_for(config)
    diagonals = config.diagonal_sequences(args.sequences, args.seq_len)
    dense = model_shape(model, family_of(model.config))
    result, pruned = _time_pruning(model, config, config.num_samples + HELD_OUT)
    smaller = model_shape(pruned, family_of(pruned.config))
    operations = (config.num_samples + statistics) * gate_step_operations(dense, args.seq_len)
    operations += (diagonals + statistics) * forward_operations(dense, args.seq_len)
    operations += diagonals * gate_step_operations(smaller, args.seq_len)
    return _beside_floor(result, operations / rate)


def _time_pruning(
    model: PreTrainedModel, config: GRASPConfig, sequences: int
) -> tuple[dict[str, Any], PreTrainedModel]:
    """Seconds from texts to the pruned model in memory, in the place of the dense one; and that model."""
    tokenizer = dummy_tokenizer(model.config)
    generator = torch.Generator().manual_seed(config.seed)
    # A sequence more than is drawn, since they are drawn from a random offset.
    tokens = torch.randint(3, model.config.vocab_size, ((sequences + 1) * config.seq_len,), generator=generator)
    reset_peak(model.device)
    start = time.perf_counter()
    pruner = GRASPPruner(config)
    pruned = pruner.prune_model(model, tokenizer, [tokenizer.decode(tokens.tolist())], inplace=True)
    seconds = time.perf_counter() - start
    return {"sequences": config.num_samples, "seconds": seconds, "kept": pruner.record.budget.kept.prunable}, pruned


def _beside_floor(result: dict[str, Any], floor: float) -> dict[str, Any]:
    return {**result, "floor_seconds": floor, "times_the_floor": result["seconds"] / floor}


TIMERS = {"grasprune": time_gates, "fasp": time_fasp, "default": time_default}


def main() -> None:
    """Measure the device's rate, then one method; write JSON."""
    options = parser(__doc__)
    options.add_argument("--method", choices=TIMERS, default="grasprune")
    options.add_argument(
        "--sequences", type=int, help="calibration sequences; 512 for grasprune, 128 for fasp, 256 for default"
    )
    options.add_argument("--seq-len", type=int, default=512)
    options.add_argument("--epochs", type=int, default=4, help="passes of the gate training")
    options.add_argument("--steps", type=int, help="gate steps to run; the rest is extrapolated")
    options.add_argument("--card", type=float, metavar="GIB", help="memory of the card that may be used")
    args = options.parse_args()
    if args.card and args.device.type != "cuda":
        options.error(f"--card {args.card:g}: there is no card, the device is {args.device}")
    if args.card:
        whole = torch.cuda.get_device_properties(args.device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, args.card * 2**30 / whole))
    args.sequences = args.sequences or {"grasprune": 512, "fasp": 128, "default": 256}[args.method]
    torch.manual_seed(args.seed)
    rate = matrix_rate(args.device)
    model = random_model(args.shape, args.device)
    result = {
        "machine": describe(args.device),
        "shape": args.shape,
        "parameters": count_parameters(model),
        "method": args.method,
        "sequences": args.sequences,
        "seq_len": args.seq_len,
        "epochs": args.epochs if args.method == "grasprune" else None,
        "matrix_tflops": rate / 1e12,
        "card_gib": args.card,
        **TIMERS[args.method](model, args, rate),
        "peak_bytes": peak_bytes(args.device),
    }
    save(result, args.output, f"training-{args.method}-{args.shape}")


if __name__ == "__main__":
    main()
