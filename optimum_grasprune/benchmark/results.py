"""The result of a benchmark as a whole: what was measured, on what, with what; and its files."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ..writing import results_folder, write_file, write_json
from .bounds import Limits, limits
from .checkpoints import DENSE, Checkpoint
from .metrics import element_bytes
from .page import markdown
from .summary import compare, memory
from .workload import Point

RESULT_NAME = "benchmark.json"
RESULT_FORMAT = 1
LOGS_FOLDER = "benchmark-logs"
_PACKAGES = ("optimum-grasprune", "torch", "transformers", "vllm")


def assembled(
    mode: str,
    measured: Mapping[str, Any],
    checkpoints: Sequence[Checkpoint],
    points: Sequence[Point],
    options: Mapping[str, Any],
    *,
    command: str,
    element_sizes: tuple[int, int],
) -> dict[str, Any]:
    """All of a benchmark as JSON types. Pure but for what it says of the machine.

    measured: `starts`, `runs` and `commands` of the mode.  options: how it was run, `kv_cache_bytes` among them.
    command: that the user gave.  element_sizes: bytes of a weight and of a KV-cache element, by the flags; what a
    server's log says of the weights goes before.
    """
    weight_bytes, kv_bytes = _served_sizes(measured["starts"], element_sizes)
    described = [item.describe(weight_bytes, kv_bytes) for item in checkpoints]
    comparisons = []
    for point in points:
        for item in checkpoints[1:]:
            # A cache that overflows costs work of its own: there the gain is bounded by no work of the models.
            within = mode != "long-context"
            bounds = _limits(checkpoints[0], item, point, measured["runs"], weight_bytes, kv_bytes) if within else None
            comparisons += compare(measured["runs"], point.name, item.name, bounds)
    return {
        "format": RESULT_FORMAT,
        "mode": mode,
        "command": command,
        "options": dict(options),
        "machine": machine(),
        "versions": versions(),
        "checkpoints": described,
        "memory": memory(described, measured["starts"], options["kv_cache_bytes"]),
        "points": [point.describe() for point in points],
        "comparisons": comparisons,
        "starts": measured["starts"],
        "runs": measured["runs"],
        "commands": measured["commands"],
    }


def _limits(
    dense: Checkpoint,
    pruned: Checkpoint,
    point: Point,
    runs: Sequence[Mapping[str, Any]],
    weight_bytes: int,
    kv_bytes: int,
) -> Limits:
    """The limits at the lengths that were measured: those of prompts from a file are not known before."""
    found = next(run["metrics"] for run in runs if run["checkpoint"] == DENSE and run["point"] == point.name)
    batch = min(point.concurrency, point.requests)
    lengths = (found["prompt_tokens"], found["output_tokens"])
    return limits(dense.shape, pruned.shape, batch, *lengths, weight_bytes, kv_bytes)


def _served_sizes(starts: Sequence[Mapping[str, Any]], by_flags: tuple[int, int]) -> tuple[int, int]:
    logged = next((start["dtype"] for start in starts if start.get("dtype")), None)
    if logged is None:
        return by_flags
    weight = element_bytes(logged)
    return weight, weight if by_flags[1] == by_flags[0] else by_flags[1]


def machine() -> dict[str, Any]:
    """What this machine computes with."""
    accelerated = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if accelerated else _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": torch.cuda.get_device_properties(0).total_memory if accelerated else _memory_bytes(),
        "system": platform.system(),
    }


def versions() -> dict[str, str]:
    """The packages that were measured; those that are not installed are left out."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def check_folder(output: Path) -> None:
    """Raise CheckpointError unless results can be written: to a new or empty folder, or to one of an earlier benchmark.

    Its folder of logs marks it as one, so that a benchmark that was killed can be run again.
    """
    results_folder(output, LOGS_FOLDER, "benchmark")


def write_results(result: dict[str, Any], output: Path) -> None:
    """Write benchmark.json and benchmark.md."""
    write_json(output / RESULT_NAME, result)
    write_file(output / "benchmark.md", markdown(result).encode())


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
