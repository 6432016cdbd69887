"""What is free on this machine: memory of devices and of the host, within a container's limits, and disk."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from typing_extensions import Self

from ..writing import resolved
from .needs import Place

_SYSTEM, _GROUPS, _OWN_GROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_VERSIONS = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))
"""Files of control groups, version 2 and 1: the limit, and what is used of it."""
_NO_LIMIT = 2**63 - 1


@dataclass(frozen=True)
class Machine:
    """Free bytes.

    device: of the device that a run computes on; None where that is not known, or its memory is the host's.
    devices: of all GPUs together that it may use: all, where none is named.
    output, temporary: on the disks of OUTPUT and of temporary files.
    one_disk: whether these are one.  name, folder: what the device, and the folder of temporary files, are called.
    """

    host: int
    output: int
    temporary: int
    device: int | None = None
    devices: int = 0
    one_disk: bool = False
    name: str = "cpu"
    folder: str = "/tmp"

    @classmethod
    def here(cls, device: torch.device, output: str) -> Self:
        """This one, for a run on a device that writes to a folder, which need not be there yet.

        device: without a number, the first of its kind, beside which the others may be used.
        """
        target, folder = _nearest(resolved(output)), tempfile.gettempdir()
        numbers = range(torch.cuda.device_count()) if device.index is None else [device.index]
        gpus = [torch.cuda.mem_get_info(number)[0] for number in numbers] if device.type == "cuda" else []
        free = torch.cuda.mem_get_info(device)[0] if gpus else None
        return cls(
            host=free_host_memory(),
            output=shutil.disk_usage(target).free,
            temporary=shutil.disk_usage(folder).free,
            device=free,
            devices=sum(gpus),
            one_disk=os.stat(target).st_dev == os.stat(folder).st_dev,
            name=str(device),
            folder=folder,
        )

    def free(self, place: Place) -> int | None:
        """What is free in a place; None where that is not known."""
        return {"device": self.device, "host": self.host, "output": self.output, "temporary": self.temporary}[place]

    def called(self, place: Place) -> str:
        """What a place is called."""
        return {
            "device": self.name,
            "host": "the CPU's memory",
            "output": "the disk of OUTPUT",
            "temporary": f"the disk of {self.folder}",
        }[place]


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


def _nearest(folder: Path) -> Path:
    """A folder, or the nearest above it that is there."""
    return next(part for part in (folder, *folder.parents) if os.path.isdir(part))
