"""The state of a training on disk: one safetensors file, whose header says in JSON how far it is and what it is of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import JsonValue
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import CheckpointError
from ..record import Stored, check_format
from ..writing import resolved, try_writing, whole_file

STATE_FORMAT = 1
STATE_NAME = "recovery.safetensors"
_HEADER = "training"


@dataclass(frozen=True, kw_only=True)
class CheckUp(Stored):
    """What texts that nothing is trained on come to after a step. losses: mean next-token loss of each, in nats."""

    step: int
    losses: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Standing(Stored):
    """Where a training stands.

    of: what is trained on what and how, by which another training is told from it.  step: steps behind it.
    stopped: whether it has ended early.  minutes: what it took so far.
    """

    format: int = STATE_FORMAT
    of: Mapping[str, JsonValue]
    step: int
    stopped: bool
    check_ups: tuple[CheckUp, ...]
    minutes: float


@dataclass(frozen=True)
class StateFile:
    """Where a training keeps its state.

    folder: for the state alone.  of: as in `Standing`; a state that differs in any of it is another training's.
    every: steps after which it is written.
    """

    folder: Path
    of: Mapping[str, JsonValue]
    every: int

    @property
    def path(self) -> Path:
        """The file itself."""
        return self.folder / STATE_NAME

    def check(self) -> None:
        """Raise CheckpointError unless the folder is empty, or none yet, or holds the state of this training."""
        target = resolved(self.folder)
        if target.exists() and not target.is_dir():
            raise CheckpointError(f"the folder {self.folder} for the state of the recovery is a file")
        try:
            held = sorted(entry.name for entry in target.iterdir()) if target.is_dir() else []
            if held and STATE_NAME not in held:
                raise CheckpointError(
                    f"the folder {self.folder} holds something other than the state of a recovery: {held[0]}"
                )
            try_writing(target)
        except OSError as error:
            raise CheckpointError(f"the folder {self.folder} cannot be written: {error.strerror}") from None
        self._header()

    def read(self) -> tuple[Standing, dict[str, Tensor]] | None:
        """What was kept, on the CPU; None where nothing was. CheckpointError where it is another training's."""
        standing = self._header()
        if standing is None:
            return None
        with safe_open(self.path, framework="pt") as file:
            return standing, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    def write(self, standing: Standing, tensors: Mapping[str, Tensor]) -> None:
        """Replace what was kept, at once; CheckpointError when it cannot be written."""
        header = {_HEADER: json.dumps(standing.to_dict())}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with whole_file(self.path) as partial:
                save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, metadata=header)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{self.path} cannot be written: {error}") from None

    def _header(self) -> Standing | None:
        if not self.path.is_file():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                values = json.loads((file.metadata() or {})[_HEADER])
            check_format(values.get("format"), STATE_FORMAT)
        except (OSError, SafetensorError, KeyError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{self.path} is not the state of a recovery: {error}") from None
        standing = Standing.from_dict(values, self.path)
        for name, value in self.of.items():
            if (found := standing.of.get(name)) != value:
                raise CheckpointError(
                    f"{self.path} is the state of another recovery: its {name} is {found}, not {value}"
                )
        return standing


def digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over named tensors, in hexadecimal: names, types, shapes and every bit."""
    found = hashlib.sha256()
    for name, tensor in tensors:
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()
