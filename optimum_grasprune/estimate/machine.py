"""What is free on this machine: memory of devices and of the host, within a container's limits, and disk."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import torch
from typing_extensions import Self

from ..execution import Peers
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
    accelerate: whether it is installed, which offloads.
    """

    host: int
    output: int
    temporary: int
    device: int | None = None
    devices: int = 0
    one_disk: bool = False
    name: str = "cpu"
    folder: str = "/tmp"
    accelerate: bool = True

    @classmethod
    def here(cls, device: torch.device, output: str, *, first: bool = False) -> Self:
        """This one, for a run on a device that writes to a folder, which need not be there yet.

        device: without a number, the first of its kind, beside which the others may be used.  first: whether these are
        left out: to ask a GPU takes some of its memory, which may be somebody else's.
        """
        folder = tempfile.gettempdir()
        (on_output, its_disk), (on_temporary, other_disk) = _disk_of(resolved(output)), _disk_of(Path(folder))
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
        alone = first or free is None or ":" in str(device)
        others = () if alone else range(1, torch.cuda.device_count())
        return cls(
            host=free_host_memory(),
            output=on_output,
            temporary=on_temporary,
            device=free,
            devices=(free or 0) + sum(torch.cuda.mem_get_info(number)[0] for number in others),
            one_disk=its_disk == other_disk,
            name=str(device),
            folder=folder,
            accelerate=find_spec("accelerate") is not None,
        )

    def allowing(self, most: Mapping[int | str, int] | None) -> Self:
        """The same with no more memory than is allowed. most: bytes by the number of a GPU, or cpu; None for all."""
        if most is None:
            return self
        gpus = {number: size for number, size in most.items() if isinstance(number, int)}
        first = gpus[min(gpus)] if gpus else None
        return replace(self, host=most.get("cpu", 0), device=first, devices=sum(gpus.values()))

    def of_each(self, peers: Peers) -> Self:
        """What every process has: its part of what those on one machine share, and no more than any other has.

        This is the machine as this process finds it, before the others take their parts.
        """
        if peers.count == 1:
            return self
        unknown = 2**62
        shared = [self.host // peers.local_count, self.temporary // peers.local_count, self.output]
        own = torch.tensor([unknown if self.device is None else self.device, *shared], device="cpu")
        least = torch.stack([each["free"] for each in peers.of_all({"free": own})]).amin(0).tolist()
        device = None if least[0] == unknown else least[0]
        return replace(self, device=device, devices=device or 0, host=least[1], temporary=least[2], output=least[3])

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


def _disk_of(folder: Path) -> tuple[int, int]:
    """Free bytes of the disk that a folder would be on, and the number of that disk.

    What is not there yet may come and go meanwhile: another process of the same run tries whether it can be written.
    """
    for part in (folder, *folder.parents):
        with suppress(FileNotFoundError, NotADirectoryError):
            return shutil.disk_usage(part).free, os.stat(part).st_dev
    raise FileNotFoundError(folder)
