"""How much memory is free for a model: of GPUs, and of the machine or the container."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

_SYSTEM, _GROUPS, _OWN_GROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_VERSIONS = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))
"""Files of control groups, version 2 and 1: the limit, and what is used of it."""
_NO_LIMIT = 2**63 - 1


@dataclass(frozen=True)
class FreeMemory:
    """Bytes that are free. gpus: by the number of each GPU that may be used.  host: for the CPU."""

    gpus: Mapping[int, int]
    host: int


def free_memory(device: str = "auto") -> FreeMemory:
    """What is free for a model on a device, as the option of that name has it: auto means every GPU there is."""
    numbers = [torch.device(device).index or 0] if device.startswith("cuda") else []
    if device == "auto" and torch.cuda.is_available():
        numbers = list(range(torch.cuda.device_count()))
    return FreeMemory({number: torch.cuda.mem_get_info(number)[0] for number in numbers}, free_host_memory())


def free_host_memory(system: Path = _SYSTEM, groups: Path = _GROUPS, own: Path = _OWN_GROUP) -> int:
    """Bytes that a process may still take: what the system has available, or less where a container's limit says so.

    system, groups, own: where Linux tells. Elsewhere it is all that the machine has.
    """
    return min([_available(system), *(_left(group) for group in _groups(groups, own))])


def _available(system: Path) -> int:
    try:
        lines = dict(line.split(":", 1) for line in system.read_text(encoding="utf-8").splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, KeyError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else _NO_LIMIT


def _groups(groups: Path, own: Path) -> list[Path]:
    """The control groups that may limit this process: its own, and all above it."""
    try:
        entries = [line.split(":", 2) for line in own.read_text(encoding="utf-8").splitlines()]
    except OSError:
        entries = []
    found = {groups, groups / "memory"}
    for entry in entries:
        if len(entry) == 3 and entry[1] in ("", "memory"):
            root = groups / entry[1]
            path = Path(entry[2].lstrip("/"))
            found |= {root / part for part in (path, *path.parents) if ".." not in path.parts}
    return sorted(found)


def _left(group: Path) -> int:
    """What a control group's limit leaves; without end where it has none. Cached files count as used, and give way."""
    for most, used in _VERSIONS:
        try:
            limit, taken = (int((group / name).read_text(encoding="utf-8")) for name in (most, used))
            pages = dict(line.split() for line in (group / "memory.stat").read_text(encoding="utf-8").splitlines())
        except (OSError, ValueError):  # no such file; "max" where there is no limit
            continue
        return max(0, limit - taken + sum(int(pages.get(name, 0)) for name in ("inactive_file", "active_file")))
    return _NO_LIMIT
