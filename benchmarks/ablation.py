"""What each part of a recipe is worth: one change at a time, several seeds, perplexity in and out of domain.

    python benchmarks/ablation.py MODEL --output FOLDER --keep-ratios 0.8 0.5 --seeds 0 1 2 -- COMPARE-OPTIONS

Every change is a run of `optimum-cli grasprune compare` with one option changed, in a folder of its own, so that a run
that was stopped is taken up where it was. COMPARE-OPTIONS hold for all of them. The table is written to
FOLDER/ablation.md and FOLDER/ablation.json, anew after each change: rise of the loss over the dense model for the
recipe as it is, and what each change adds to it, seed by seed. A folder is for one model and one recipe.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from optimum_grasprune.comparison import ComparisonResult
from optimum_grasprune.writing import write_file, write_json

CHANGES: dict[str, list[str]] = {
    "zero start": ["--start", "zero"],
    "Fisher start in 8 rounds": ["--start-rounds", "8"],
    "shrinking budget": ["--budget-warmup", "0.5"],
    "learning rate 0.01": ["--learning-rate", "0.01"],
    "learning rate 0.05": ["--learning-rate", "0.05"],
    "constant learning rate": ["--schedule", "constant"],
    "batch of 4": ["--batch-size", "4"],
    "no snapshots": ["--snapshots", "1"],
    "width search, 64 trials": ["--search-trials", "64"],
    "nothing held out": ["--held-out", "0"],
    "text alone, no teacher": ["--kl-weight", "0"],
    "gates by the text alone": ["--gate-kl-weight", "0"],
    "gates half by the teacher": ["--gate-kl-weight", "0.5"],
    "teacher alone": ["--kl-weight", "1"],
    "nothing rehearsed": ["--rehearsal", "0"],
    "reconstruction with a ridge of 0.5": ["--reconstruction-damping", "0.5"],
    "reconstruction with a ridge of 8": ["--reconstruction-damping", "8"],
    "diagonals at a rate of 0.01": ["--diagonal-learning-rate", "0.01"],
    "joint multipliers": ["--multipliers", "joint"],
    "joint multipliers with a teacher": ["--multipliers", "joint", "--kl-weight", "0.5"],
    "two passes of diagonals": ["--diagonal-epochs", "2"],
}
"""What is changed in the recipe, and by which options."""

COMPENSATIONS = {
    "": "",
    "no compensation": "+none",
    "scales only": "+scales",
    "least squares only": "+least_squares",
    "diagonals only": "+diagonals",
    "robust least squares and scales": "+both@least_squares=robust",
    "robust least squares and diagonals": "+refit@least_squares=robust",
    "weighted least squares and diagonals": "+refit",
    "reconstruction only": "+reconstruction",
}
"""Names of further rows, and what is added to the recipe's name in `compare`: they share one training of the gates."""

Table = dict[str, dict[str, list[float]]]
"""Excess losses of one corpus by row and keep ratio, a value for each seed."""


def compare(args: argparse.Namespace, change: str, seed: int) -> dict[str, ComparisonResult]:
    """One change with one seed at all ratios: comparisons by the names of their rows."""
    rows = {change: ""} if change else COMPENSATIONS
    entries = {row or args.recipe: args.recipe + compensation for row, compensation in rows.items()}
    folder = folder_of(args, change, seed)
    # The dense model is the same in all of them, and `compare` sees to it that what it finds fits.
    dense = folder_of(args, "", args.seeds[0]) / "dense.json"
    if dense.exists() and not folder.exists():
        (folder / "cells").mkdir(parents=True)
        shutil.copy(dense, folder)
    command = [sys.executable, "-m", "optimum.commands.optimum_cli", "grasprune", "compare", "-m", args.model]
    command += ["--methods", *entries.values(), "--keep-ratios", *args.keep_ratios, "--seed", str(seed), "--no-plot"]
    subprocess.run([*command, *args.compare_options, *CHANGES.get(change, []), str(folder)], check=True)
    whole = ComparisonResult.read(folder / "comparison.json")
    return {
        row: replace(whole, cells=tuple(cell for cell in whole.cells if cell.entry == entry))
        for row, entry in entries.items()
    }


def folder_of(args: argparse.Namespace, change: str, seed: int) -> Path:
    """Where the comparison with one change and one seed is kept."""
    return args.output / f"{change.replace(' ', '-') or args.recipe}-{seed}"


def excess_losses(comparison: ComparisonResult) -> dict[tuple[str, str], float]:
    """ln(perplexity ÷ dense) for each corpus and keep ratio, in nats."""
    return {
        (corpus, f"{cell.keep_ratio:g}"): comparison.excess_loss(cell.pruned, corpus)
        for cell in comparison.cells
        if cell.pruned is not None
        for corpus in cell.pruned.perplexity
    }


def main() -> None:
    """Run what is not finished, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--recipe", default="default", help="default or quick: what is changed")
    parser.add_argument("--keep-ratios", nargs="+", default=["0.8", "0.5"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--changes", nargs="*", choices=CHANGES, default=list(CHANGES), metavar="CHANGE")
    # argparse would let the options of `compare` swallow its own.
    divider = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    args = parser.parse_args(sys.argv[1:divider])
    args.compare_options = sys.argv[divider + 1 :]
    refuse_foreign(parser, args)
    args.output.mkdir(parents=True, exist_ok=True)

    run = {name: getattr(args, name) for name in ("model", "recipe", "seeds", "compare_options")}
    tables: dict[str, Table] = {}
    for change in ("", *args.changes):
        for seed in args.seeds:
            for row, comparison in compare(args, change, seed).items():
                for (corpus, ratio), loss in excess_losses(comparison).items():
                    tables.setdefault(corpus, {}).setdefault(row, {}).setdefault(ratio, []).append(loss)
        page = heading(run) + "\n".join(f"## {corpus}\n\n{markdown(table)}" for corpus, table in tables.items())
        write_json(args.output / "ablation.json", {**run, "excess_loss": tables})
        write_file(args.output / "ablation.md", page.encode())
    print(page)


def refuse_foreign(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with one line when the folder holds the table of something else, which this one would overwrite."""
    earlier = args.output / "ablation.json"
    if not earlier.exists():
        return
    found = json.loads(earlier.read_text(encoding="utf-8"))
    for name in ("model", "recipe"):
        if found[name] != getattr(args, name):
            held = f"{name} {found[name]}, not {getattr(args, name)}"
            parser.error(f"--output {args.output} holds the ablation of {held}")


def heading(run: dict[str, Any]) -> str:
    """What the table shows, and how it was made."""
    *several, last = map(str, run["seeds"])
    seeds = f"Mean ± standard deviation over the seeds {', '.join(several)} and {last}" if several else f"Seed {last}"
    return (
        f"# Ablation of `{run['recipe']}` on {Path(run['model']).name}\n\n"
        "First row: rise of the loss over the dense model, ln(perplexity ÷ dense), in nats. Other rows: what a change "
        f"adds to it, paired by seed; positive is worse. {seeds}.\n\n"
        f"Options of `compare`: `{shlex.join(run['compare_options'])}`\n\n"
    )


def markdown(table: Table) -> str:
    """One corpus: the first row's excess loss, and what the others add to it."""
    (recipe, whole), *changes = table.items()
    lines = [f"| change | {' | '.join(f'ρ = {ratio}' for ratio in whole)} |", f"|---|{'---:|' * len(whole)}"]
    lines.append(f"| {recipe} | {' | '.join(shown(values, '.3f') for values in whole.values())} |")
    for change, row in changes:
        # Paired by seed: seeds move all rows alike, and that is not what a change does.
        added = [[value - base for value, base in zip(row[r], whole[r], strict=True)] for r in whole]
        lines.append(f"| {change} | {' | '.join(shown(values, '+.3f') for values in added)} |")
    return "\n".join(lines) + "\n"


def shown(values: list[float], form: str) -> str:
    """A mean with its spread over the seeds, where there are several."""
    mean = format(statistics.mean(values), form)
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.3f}"


if __name__ == "__main__":
    main()
