"""The files of a run's state: an index in JSON of what has been worked out, and tensors, safetensors, beside it."""

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
from ..record import CheckUp, Stored, check_format
from ..writing import slug, whole_file, write_json

STATE_FORMAT = 1
INDEX_NAME = "run.json"
_HEADER = "standing"


@dataclass(frozen=True, kw_only=True)
class Standing(Stored):
    """Where a long piece of work stands.

    of: hash of what it is done on and how.  step: steps behind it.  stopped: whether it has ended early.
    minutes: what it took so far.
    """

    of: str
    step: int
    stopped: bool = False
    check_ups: tuple[CheckUp, ...] = ()
    minutes: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Result(Stored):
    """Something that has been worked out.

    place: in the order in which the run asks for it.  what: as in "gates".  of: as in `Standing`.
    value: where it is a number; None where it is tensors, in a file.
    """

    place: int
    what: str
    of: str
    value: float | None = None

    @property
    def file_name(self) -> str:
        """Of its tensors."""
        return f"{self.place:04d}-{slug(self.what)}.safetensors"


@dataclass(frozen=True, kw_only=True)
class RunIndex(Stored):
    """What has been worked out in a run.

    of: what tells the run from others.  outputs: checkpoints of several that are written or being written.
    """

    format: int = STATE_FORMAT
    of: Mapping[str, JsonValue]
    results: tuple[Result, ...] = ()
    outputs: tuple[str, ...] = ()

    @classmethod
    def found(cls, folder: Path) -> RunIndex | None:
        """The index in a folder; None where there is none. CheckpointError where it is damaged."""
        file = folder / INDEX_NAME
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
            check_format(values.get("format"), STATE_FORMAT)
            return cls.from_dict(values, file)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, AttributeError, CheckpointError) as error:
            raise unreadable(file, str(error).removeprefix(f"{file}: ")) from None

    def write(self, folder: Path) -> None:
        """Replace the index in a folder, at once; CheckpointError when it cannot be written."""
        write_json(folder / INDEX_NAME, self.to_dict())


def read_standing(file: Path) -> tuple[Standing, dict[str, Tensor]] | None:
    """What a file of tensors holds, on the CPU; None where there is none. CheckpointError where it is damaged."""
    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt") as opened:
            standing = Standing.from_dict(json.loads((opened.metadata() or {})[_HEADER]), file)
            return standing, {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError, CheckpointError) as error:
        raise unreadable(file, str(error).removeprefix(f"{file}: ")) from None


def write_standing(file: Path, standing: Standing, tensors: Mapping[str, Tensor]) -> None:
    """Replace a file of tensors, at once. Raises OSError or SafetensorError."""
    header = {_HEADER: json.dumps(standing.to_dict())}
    with whole_file(file) as partial:
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, partial, metadata=header)


def unreadable(file: Path, reason: str) -> CheckpointError:
    """The error of a file that is damaged."""
    return CheckpointError(f"{file} is not the state of a run: {reason}; --resume no starts anew")


def digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over named tensors, in hexadecimal: names, types, shapes and every bit."""
    found = hashlib.sha256()
    for name, tensor in tensors:
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()
