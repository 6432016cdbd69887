"""What is free on this machine: memory of devices and of the host, within a container's limits, and disk."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from typing_extensions import Self

from ..execution.free_memory import free_host_memory
from ..writing import resolved
from .needs import Place


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
    def here(cls, device: torch.device, output: str, sharers: int = 1) -> Self:
        """This one, for a run on a device that writes to a folder, which need not be there yet.

        device: without a number, the first of its kind, beside which the others may be used.  sharers: processes that
        share its memory and its temporary folder, of which each has its part.
        """
        target, folder = _nearest(resolved(output)), tempfile.gettempdir()
        numbers = range(torch.cuda.device_count()) if device.index is None else [device.index]
        gpus = [torch.cuda.mem_get_info(number)[0] for number in numbers] if device.type == "cuda" else []
        free = torch.cuda.mem_get_info(device)[0] if gpus else None
        return cls(
            host=free_host_memory() // sharers,
            output=shutil.disk_usage(target).free,
            temporary=shutil.disk_usage(folder).free // sharers,
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


def _nearest(folder: Path) -> Path:
    """A folder, or the nearest above it that is there."""
    return next(part for part in (folder, *folder.parents) if os.path.isdir(part))
