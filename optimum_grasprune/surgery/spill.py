"""Tensors that wait on the disk, so that what may be needed later takes no memory until it is."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterator, MutableMapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import GraspruneError

_NAME = "tensor"


class OnDisk(MutableMapping[str, Tensor]):
    """Tensors by name, each in a file of its own below the temporary folder, which goes when nothing refers to this.

    What is read is on the CPU, in the dtype that was written. GraspruneError where the folder cannot be written.
    """

    def __init__(self) -> None:
        try:
            self._folder = Path(tempfile.mkdtemp(prefix="grasprune-refitted-"))
        except OSError as error:
            raise _unwritable(error) from None
        # Not by TemporaryDirectory, which warns where nobody closes it: who holds drafts need not know of files.
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._files: dict[str, Path] = {}

    def __setitem__(self, name: str, tensor: Tensor) -> None:
        file = self._files.setdefault(name, self._folder / f"{len(self._files)}.safetensors")
        try:
            save_file({_NAME: tensor.detach().cpu().contiguous()}, file)
        except (OSError, SafetensorError) as error:  # safetensors reports a full disk as an error type of its own
            raise _unwritable(error) from None

    def __getitem__(self, name: str) -> Tensor:
        return load_file(self._files[name])[_NAME]

    def __delitem__(self, name: str) -> None:
        self._files.pop(name).unlink()

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def _unwritable(error: Exception) -> GraspruneError:
    return GraspruneError(
        f"the temporary folder {tempfile.gettempdir()}, which holds refitted weights, cannot be written: {error}; "
        "the environment variable TMPDIR names another"
    )
