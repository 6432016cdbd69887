"""Single tensors of a checkpoint, read from where they lie in its safetensors files.

A file is opened, read at the tensor's place and closed. safetensors' own reader maps the whole file, and pages that
were looked at stay part of the process for as long as any tensor of the file lives. Measured on 1.1 B parameters
(bf16, 22 layers of 84 MiB, files of 1 GB), layer after layer: plain reads take 84 MiB at the peak, a mapping and a
copy for each tensor 132 MiB, tensors of a mapping that stays open 947 MiB, as much as its file holds.
"""

from __future__ import annotations

import json
import math
import mmap
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from .errors import CheckpointError
from .model_files import weight_files

_CPU = torch.device("cpu")
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Names of data types in the files, as far as weights have them."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file. start: offset of its first byte."""

    file: Path
    start: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    def rows(self, first: int, count: int) -> StoredTensor:
        """Some of its rows."""
        row = math.prod(self.shape[1:]) * self.dtype.itemsize
        return replace(self, start=self.start + first * row, shape=(count, *self.shape[1:]))

    def read(self, device: torch.device = _CPU, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor, where and as it is wanted; CheckpointError where the file has gone or become shorter.

        dtype: as it is stored, by default.
        """
        numbers = in_pages_of_its_own(self.shape, self.dtype)
        unread = numbers.flatten().view(torch.uint8).numpy().data
        try:
            with self.file.open("rb", buffering=0) as stream:
                stream.seek(self.start)
                while unread:
                    count = stream.readinto(unread)  # a system call reads 2 GiB at the most
                    if not count:
                        raise OSError("it ends too early")
                    unread = unread[count:]
        except OSError as error:
            what = error.strerror or error
            raise CheckpointError(f"the weights in {self.file} cannot be read any more: {what}") from None
        if device.type == "cpu" and dtype not in (None, self.dtype):
            return in_pages_of_its_own(self.shape, dtype).copy_(numbers)
        return numbers.to(device, dtype)


def in_pages_of_its_own(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A new tensor on the CPU whose memory, where it is more than little, goes back to the system when it is let go.

    Layers come and go, and the holes that they would leave in the heap are not filled: on the model above, in fp32,
    two steps of gates took 717 MiB beside what was there before, and take 359 so (a layer has 168).
    """
    count = math.prod(shape)
    if (size := count * dtype.itemsize) < 2**20:
        return torch.empty(shape, dtype=dtype, device="cpu")
    return torch.frombuffer(mmap.mmap(-1, size), dtype=dtype, count=count).view(shape)


def stored_tensors(source: str, revision: str | None = None) -> dict[str, StoredTensor]:
    """All floating-point tensors in the safetensors files of a model folder or Hub repository, by name.

    None at all where there are no such files. They were looked through before, by `check_stored`.
    """
    found: dict[str, StoredTensor] = {}
    for file in weight_files(source, revision):
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(size))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            if (dtype := _DTYPES.get(entry["dtype"])) is not None:
                start = 8 + size + entry["data_offsets"][0]
                found[name] = StoredTensor(file, start, tuple(entry["shape"]), dtype)
    return found
