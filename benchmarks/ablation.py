"""What each part of the default recipe is worth: one change at a time, several seeds, perplexity in and out of domain.

    python benchmarks/ablation.py MODEL --output FOLDER --keep-ratios 0.8 0.5 --seeds 0 1 2 -- COMPARE-OPTIONS

Every change is a run of `optimum-cli grasprune compare` with one option changed, in a folder of its own, so that a run
that was stopped is taken up where it was. COMPARE-OPTIONS hold for all of them. The table is written to
FOLDER/ablation.md and FOLDER/ablation.json, anew after each change.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

CHANGES: dict[str, list[str]] = {
    "zero start": ["--start", "zero"],
    "Fisher start in 8 rounds": ["--start-rounds", "8"],
    "full cut from the first step": ["--budget-warmup", "0"],
    "learning rate 0.01": ["--learning-rate", "0.01"],
    "learning rate 0.05": ["--learning-rate", "0.05"],
    "constant learning rate": ["--schedule", "constant"],
    "batch of 4": ["--batch-size", "4"],
    "no snapshots": ["--snapshots", "1"],
    "width search, 64 trials": ["--search-trials", "64"],
    "nothing held out": ["--held-out", "0"],
}
"""What is changed in the default recipe, and by which options."""

COMPENSATIONS = {
    "default": "default",
    "no compensation": "default+none",
    "scales only": "default+scales",
    "least squares only": "default+least_squares",
}
"""Names of the rows, and the entries of `compare` that give them: they share one training of the gates."""


def compare(args: argparse.Namespace, change: str, seed: int) -> dict[str, dict[str, Any]]:
    """One change with one seed at all ratios: comparisons by the names of their rows."""
    rows = {change: "default"} if change else COMPENSATIONS
    folder = args.output / f"{change.replace(' ', '-') or 'default'}-{seed}"
    command = [sys.executable, "-m", "optimum.commands.optimum_cli", "grasprune", "compare", "-m", args.model]
    command += ["--methods", *rows.values(), "--keep-ratios", *args.keep_ratios, "--seed", str(seed), "--no-plot"]
    subprocess.run([*command, *args.compare_options, *CHANGES.get(change, []), str(folder)], check=True)
    whole = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    return {
        row: {**whole, "cells": [cell for cell in whole["cells"] if cell["entry"] == entry]}
        for row, entry in rows.items()
    }


def excess_losses(comparison: dict[str, Any]) -> dict[tuple[float, str], float]:
    """ln(perplexity ÷ dense) for each keep ratio and corpus, in nats."""
    dense = comparison["dense"]["perplexity"]
    return {
        (cell["keep_ratio"], corpus): math.log(value / dense[corpus])
        for cell in comparison["cells"]
        for corpus, value in cell["perplexity"].items()
    }


def main() -> None:
    """Run what is not finished, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--keep-ratios", nargs="+", default=["0.8", "0.5"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--changes", nargs="*", choices=CHANGES, default=list(CHANGES), metavar="CHANGE")
    # argparse would let the options of `compare` swallow its own.
    divider = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    args = parser.parse_args(sys.argv[1:divider])
    args.compare_options = sys.argv[divider + 1 :]
    args.output.mkdir(parents=True, exist_ok=True)

    table: dict[str, dict[str, list[float]]] = {}
    for change in ("", *args.changes):
        for seed in args.seeds:
            for row, comparison in compare(args, change, seed).items():
                for (ratio, corpus), loss in excess_losses(comparison).items():
                    table.setdefault(row, {}).setdefault(f"{corpus}, ρ = {ratio:g}", []).append(loss)
        (args.output / "ablation.json").write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
        (args.output / "ablation.md").write_text(markdown(table), encoding="utf-8")
    print(markdown(table))


def markdown(table: dict[str, dict[str, list[float]]]) -> str:
    """Excess loss in nats, mean over seeds ± standard deviation where there are several."""
    columns = list(next(iter(table.values())))
    lines = [f"| change | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    lines += [
        f"| {variant} | {' | '.join(shown(row[column]) for column in columns)} |" for variant, row in table.items()
    ]
    return "\n".join(lines) + "\n"


def shown(values: list[float]) -> str:
    """A mean with its spread."""
    mean = f"{statistics.mean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.3f}"


if __name__ == "__main__":
    main()
