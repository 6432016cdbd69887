"""Serving at a real size with random weights: dense, ρ = 0.8, ρ = 0.5 with odd and with round widths, and a control.

    python benchmarks/gpu/serving.py 80 --output benchmarks/results/gpu -- --concurrency 1 16 64 --lengths 512:128
    python benchmarks/gpu/serving.py 50 50-aligned 50-uniform --output benchmarks/results/gpu -- --repetitions 2
    python benchmarks/gpu/serving.py 50 --shape tiny --output out -- --kv-cache-memory 1 --together

Writes the checkpoints without weights, which vLLM then draws itself, and hands them to `optimum-cli grasprune
benchmark` beside the dense one. What stands after `--` are its options. Each call measures the dense model anew, so
that every ratio is between runs of one call.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

from optimum_grasprune.dummy import SHAPES

MAKE_DUMMY = Path(__file__).parents[2] / "examples" / "make_dummy.py"
POINTS: dict[str, tuple[str, ...]] = {
    "80": ("--keep-ratio", "0.8"),
    "80-aligned": ("--keep-ratio", "0.8", "--ffn-multiple-of", "64"),
    "50": ("--keep-ratio", "0.5"),
    "50-aligned": ("--keep-ratio", "0.5", "--ffn-multiple-of", "64"),
    "50-uniform": ("--keep-ratio", "0.5", "--uniform"),
    "50-uniform-aligned": ("--keep-ratio", "0.5", "--uniform", "--ffn-multiple-of", "64"),
}
"""Checkpoints by name: the options of make_dummy.py that make them."""
DRAWN_BY_VLLM = "--load-format dummy"


def run(*command: str | Path) -> None:
    """Run a command, showing it; end with its code if it fails."""
    words = [str(word) for word in command]
    print(f"\n$ {shlex.join(words)}", flush=True)
    code = subprocess.run(words, check=False).returncode
    if code:
        sys.exit(code)


def checkpoint(shape: str, name: str, options: tuple[str, ...], folder: Path) -> Path:
    """Write one checkpoint, in place of an older one; its folder."""
    path = folder / f"{shape}-{name}"
    run(sys.executable, MAKE_DUMMY, "--shape", shape, *options, "--config-only", "--overwrite", path)
    return path


def with_flags(options: list[str]) -> list[str]:
    """Options of the benchmark with our engine flag before those given, which win."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--serve-flags", default="")
    known, others = parser.parse_known_args(options)
    return [*others, f"--serve-flags={DRAWN_BY_VLLM} {known.serve_flags}".rstrip()]


def main() -> None:
    """Write checkpoints, run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("points", nargs="+", choices=POINTS, metavar="POINT", help=f"any of {', '.join(POINTS)}")
    parser.add_argument("--shape", choices=SHAPES, default="llama-2-7b")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="folder for results")
    parser.add_argument(
        "--checkpoints", type=Path, default=Path("build/dummies"), metavar="FOLDER", help="folder for configurations"
    )
    # argparse would let the options of the benchmark swallow its own.
    divider = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    args = parser.parse_args(sys.argv[1:divider])
    folder = args.checkpoints
    folder.mkdir(parents=True, exist_ok=True)
    args.output.mkdir(parents=True, exist_ok=True)
    command: list[str | Path] = ["--dense", checkpoint(args.shape, "dense", (), folder)]
    for point in args.points:
        command += ["--pruned", f"{point}={checkpoint(args.shape, point, POINTS[point], folder)}"]
    cli = (sys.executable, "-m", "optimum.commands.optimum_cli", "grasprune", "benchmark")
    run(*cli, *command, *with_flags(sys.argv[divider + 1 :]), args.output / f"serving-{'-'.join(args.points)}")


if __name__ == "__main__":
    main()
