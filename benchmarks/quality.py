"""Perplexity of a model dense, pruned by each method, and at each keep ratio: the tables in README.

    python benchmarks/quality.py MODEL --dataset CORPUS --evaluate NAME=FILE[SLICE] … --output results.json

Runs `optimum-cli grasprune export` and `evaluate`, as a user would. A cell that the output file already has is not run
again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

VARIANTS = ("grasprune", "grasprune, no scales", "random")


def grasprune(*arguments: str) -> None:
    """Run one command of ours."""
    subprocess.run([sys.executable, "-m", "optimum.commands.optimum_cli", "grasprune", *arguments], check=True)


def measure(model: str, evaluate: list[str], windows: list[str], scratch: Path) -> dict[str, float]:
    """Perplexity of a model on each named corpus."""
    perplexities = {}
    for entry in evaluate:
        name, _, place = entry.partition("=")
        file, bracket, part = place.partition("[")
        result = scratch / "evaluation.json"
        corpus = ["--dataset", file, *(["--dataset-split", bracket + part] if bracket else [])]
        grasprune("evaluate", "-m", model, *corpus, *windows, "--json", str(result))
        perplexities[name] = json.loads(result.read_text())["models"][0]["perplexity"]
    return perplexities


def export_options(args: argparse.Namespace, variant: str, ratio: str, scratch: Path) -> list[str]:
    """How a variant is exported; the one without scales is a replay of the one with them."""
    if variant == "grasprune, no scales":
        return ["--plan", str(scratch / f"grasprune-{ratio}"), "--no-scales"]
    calibration = ["--dataset", args.dataset, *(["--dataset-split", args.dataset_split] if args.dataset_split else [])]
    method = ["--method", variant, *(["--no-scales"] if variant == "random" else [])]
    return ["--keep-ratio", ratio, *method, *calibration, *args.options.split()]


def run_cell(args: argparse.Namespace, variant: str, ratio: str, windows: list[str], scratch: Path) -> dict[str, Any]:
    """Prune once and measure."""
    output, record = scratch / f"{variant}-{ratio}".replace(", ", "-"), scratch / "record.json"
    start = time.perf_counter()
    options = export_options(args, variant, ratio, scratch)
    grasprune("export", "-m", args.model, *options, "--overwrite", "--json", str(record), str(output))
    seconds = time.perf_counter() - start
    kept = json.loads(record.read_text())["budget"]["kept"]
    perplexities = measure(str(output), args.evaluate, windows, scratch)
    return {
        "variant": variant,
        "keep_ratio": float(ratio),
        "kept": kept,
        "seconds": round(seconds, 1),
        "perplexity": perplexities,
    }


def main() -> None:
    """Fill the table, cell by cell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--dataset", required=True, metavar="PATH", help="calibration corpus")
    parser.add_argument("--dataset-split", metavar="SLICE")
    parser.add_argument("--evaluate", nargs="+", required=True, metavar="NAME=FILE[SLICE]")
    parser.add_argument("--keep-ratios", nargs="+", default=["0.8", "0.5"])
    parser.add_argument("--variants", nargs="+", default=VARIANTS, choices=VARIANTS)
    parser.add_argument("--window", default="256")
    parser.add_argument("--windows", default="150")
    parser.add_argument("--options", default="", help="more options for export, in one string")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()

    windows = ["--seq-len", args.window, "--num-samples", args.windows]
    table: dict[str, Any] = json.loads(args.output.read_text()) if args.output.is_file() else {"cells": []}
    table["command"] = "python " + " ".join(sys.argv)
    done = {(cell["variant"], cell["keep_ratio"]) for cell in table["cells"]}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        if "dense" not in table:
            table["dense"] = measure(args.model, args.evaluate, windows, scratch)
        for ratio in args.keep_ratios:
            for variant in args.variants:
                if (variant, float(ratio)) not in done:
                    table["cells"].append(run_cell(args, variant, ratio, windows, scratch))
                    args.output.write_text(json.dumps(table, indent=2) + "\n")
    print_markdown(table)


def print_markdown(table: dict[str, Any]) -> None:
    """The table as Markdown."""
    names = list(table["dense"])
    print(f"| | kept of all | KV cache | {' | '.join(names)} |\n|---|---:|---:|{'---:|' * len(names)}")
    dense = " | ".join(f"{table['dense'][name]:.2f}" for name in names)
    print(f"| dense | 100.0% | 100.0% | {dense} |")
    for cell in table["cells"]:
        kept, values = cell["kept"], " | ".join(f"{cell['perplexity'][name]:.2f}" for name in names)
        label = f"{cell['variant']}, ρ = {cell['keep_ratio']}"
        print(f"| {label} | {kept['parameters']:.1%} | {kept['kv_cache']:.1%} | {values} |")


if __name__ == "__main__":
    main()
