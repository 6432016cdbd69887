"""Seconds that FASP takes on a random model of OPT-125M's shape: its metric, and its restoration of the weights.

    python benchmarks/fasp.py [--num-samples 8] [--seq-len 512] [--keep-ratio 0.8] [--device cpu]

Weights and tokens are random, which changes no cost. Both kinds of seconds are given beside those per layer × d², as
the paper's table of pruning times can be read: 17 s for OPT-125M on an RTX 4090, 2.4 µs per layer × d² (FASP,
arXiv 2501.09412). CPU seconds are of all threads together, and do not count what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import torch
from transformers import AutoModelForCausalLM, OPTConfig, PreTrainedModel

from optimum_grasprune import GRASPConfig, PruningPlan
from optimum_grasprune.execution import WholeModel
from optimum_grasprune.loading import count_parameters
from optimum_grasprune.methods import get_method
from optimum_grasprune.problem import Problem
from optimum_grasprune.recovery.reference import Reference

PAPER = {"seconds": 17.0, "microseconds_per_layer_and_d2": round(17e6 / (12 * 768**2), 2)}
"""OPT-125M on an RTX 4090."""
Seconds = dict[str, float]


def seconds_of(work: Callable[[], object]) -> Seconds:
    """What it took, by the clock and of all processors."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def random_opt(layers: int, hidden: int, heads: int) -> PreTrainedModel:
    """A model of OPT's shape; by default 125M's."""
    torch.manual_seed(0)
    config = OPTConfig(
        num_hidden_layers=layers, hidden_size=hidden, num_attention_heads=heads, ffn_dim=4 * hidden, dtype="float32"
    )
    return AutoModelForCausalLM.from_config(config).eval()


def problem_of(model: PreTrainedModel, config: GRASPConfig, sequences: int, length: int) -> Problem:
    """FASP's, on random tokens."""
    runner, method = WholeModel(model), get_method("fasp")
    tokens = torch.randint(model.config.vocab_size, (sequences, length), generator=torch.Generator().manual_seed(0))
    budget = method.budget(config, model, runner.family, runner.inventory, 0)
    return method.problem(runner, budget, tokens, tokens[:0], config)


def main() -> None:
    """Measure both, print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("layers", 12), ("hidden", 768), ("heads", 12), ("num-samples", 8), ("seq-len", 512)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--keep-ratio", type=float, default=0.8)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()

    model = random_opt(args.layers, args.hidden, args.heads).to(args.device)
    method, config = get_method("fasp"), GRASPConfig(method="fasp", keep_ratio=args.keep_ratio)
    problem = problem_of(model, config, args.num_samples, args.seq_len)
    metric = seconds_of(lambda: method.score(problem))
    plan = PruningPlan.from_mask(method.select(problem, method.score(problem)))
    chain = method.chain_for(config)
    restoration = seconds_of(lambda: list(chain.refitted(Reference.of(problem), chain.trials(plan))))
    total = {kind: metric[kind] + restoration[kind] for kind in metric}
    size = args.layers * args.hidden**2
    result = {
        "parameters": count_parameters(model),
        "layers": args.layers,
        "hidden_size": args.hidden,
        "tokens": args.num_samples * args.seq_len,
        "keep_ratio": args.keep_ratio,
        "metric_seconds": rounded(metric),
        "restoration_seconds": rounded(restoration),
        "microseconds_per_layer_and_d2": {kind: round(1e6 * seconds / size, 2) for kind, seconds in total.items()},
        "paper": PAPER,
        "device": args.device,
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(result, indent=2))


def rounded(seconds: Seconds) -> Seconds:
    """Tenths of seconds."""
    return {kind: round(value, 1) for kind, value in seconds.items()}


if __name__ == "__main__":
    main()
