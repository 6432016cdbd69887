"""What the scripts here share: the device, its memory and matrix rate, and where results go."""

from __future__ import annotations

import argparse
import json
import platform
import resource
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch.utils.benchmark import Timer

from optimum_grasprune.dummy import SHAPES
from optimum_grasprune.loading import resolve_device
from optimum_grasprune.writing import write_json

PACKAGES = ("optimum-grasprune", "torch", "transformers", "vllm")
RATE_SIZE = {"cuda": 8192, "cpu": 1024}
"""Rows and columns of the square matrices that a device's rate is measured on: large enough to be at full speed."""


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options of every script: what is run, where, and where results go."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--shape", choices=SHAPES, default="llama-2-7b")
    options.add_argument("--device", type=resolve_device, default="auto", help="cuda or cpu; the GPU if there is one")
    options.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="folder for results")
    options.add_argument("--seed", type=int, default=0)
    return options


def describe(device: torch.device) -> dict[str, Any]:
    """The machine and the versions of what ran on it."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {package: found for package in PACKAGES if (found := _version(package))},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def product_seconds(rows: int, features: int, columns: int, device: torch.device, dtype: torch.dtype) -> float:
    """Median seconds of one product (rows, features) · (features, columns), as a linear map computes it."""
    left = torch.randn(rows, features, device=device, dtype=dtype)
    weight = torch.randn(columns, features, device=device, dtype=dtype)
    timer = Timer(
        "linear(left, weight)", globals={"linear": torch.nn.functional.linear, "left": left, "weight": weight}
    )
    return timer.blocked_autorange(min_run_time=0.5).median


def matrix_rate(device: torch.device, dtype: torch.dtype = torch.bfloat16) -> float:
    """Floating-point operations per second of a large square product, a multiplication and an addition counted as two.

    It is measured, not looked up: what the card gives today, with its clock and its library.
    """
    size = RATE_SIZE.get(device.type, RATE_SIZE["cpu"])
    return 2 * size**3 / product_seconds(size, size, size, device, dtype)


def reset_peak(device: torch.device) -> None:
    """Start to watch the device's memory anew; the peak of a CPU process cannot be reset."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int:
    """Most memory in use at once: tensors on a GPU since `reset_peak`, the whole process on a CPU since its start."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def save(result: dict[str, Any], folder: Path, name: str) -> None:
    """Write a result to FOLDER/NAME.json, and print it."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{name}.json", result)
    print(json.dumps(result, indent=2))
