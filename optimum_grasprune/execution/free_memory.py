"""How much memory is free for a model: of GPUs, and of the machine or the container."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

_SYSTEM, _GROUPS = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class FreeMemory:
    """Bytes that are free. gpus: by the number of each GPU that may be used.  host: for the CPU."""

    gpus: Mapping[int, int]
    host: int


def free_memory(device: str = "auto", *, first: bool = False) -> FreeMemory:
    """What is free for a model on a device, as the option of that name has it: auto means every GPU there is.

    first: only the first of them.
    """
    numbers = [torch.device(device).index or 0] if device.startswith("cuda") else []
    if device == "auto" and torch.cuda.is_available():
        numbers = list(range(1 if first else torch.cuda.device_count()))
    return FreeMemory({number: torch.cuda.mem_get_info(number)[0] for number in numbers}, free_host_memory())


def free_host_memory(system: Path = _SYSTEM, groups: Path = _GROUPS) -> int:
    """Bytes that processes may still take: what the system counts as available, or what a container's limit leaves.

    system, groups: where Linux tells. Elsewhere it is all that the machine has.
    """
    return min([_available(system), *_left_in_container(groups), *_left_in_container(groups / "memory")])


def _available(system: Path) -> int:
    try:
        lines = dict(line.split(":", 1) for line in system.read_text(encoding="utf-8").splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, KeyError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _left_in_container(group: Path) -> list[int]:
    """None or one number: control groups, version 2 or 1. Pages of files count as used, and give way."""
    for most, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
        try:
            limit, taken = (int((group / name).read_text(encoding="utf-8")) for name in (most, used))
            pages = dict(line.split() for line in (group / "memory.stat").read_text(encoding="utf-8").splitlines())
            return [limit - taken + int(pages.get("inactive_file", 0))]
        except (OSError, ValueError):  # no such file; "max" where there is no limit
            continue
    return []
