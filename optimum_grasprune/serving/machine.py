"""What was measured with: this machine, and the versions of what ran on it."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from .results import Machine

_PACKAGES = ("optimum-grasprune", "torch", "transformers", "vllm")


def machine() -> Machine:
    """What this machine computes with."""
    accelerated = torch.cuda.is_available()
    return Machine(
        device=torch.cuda.get_device_name() if accelerated else _processor(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        memory_bytes=torch.cuda.get_device_properties(0).total_memory if accelerated else _memory_bytes(),
        system=platform.system(),
    )


def versions(others: Sequence[str] = ()) -> dict[str, str]:
    """The packages that were measured; those that are not installed are left out. others: packages of the engine."""
    found = {"python": platform.python_version()}
    for name in (*_PACKAGES, *others):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
