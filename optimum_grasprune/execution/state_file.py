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
from ..reading import json_in, json_of
from ..record import CheckUp, Stored, check_format
from ..writing import slug, whole_file, write_json

STATE_FORMAT = 1
INDEX_NAME = "run.json"
_HEADER, _CHECKSUM = "standing", "sha256"
_CHANGED = "it is not what was written"
"""A disk may flip bits, and a number that is a little off would go unnoticed into the result."""


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
            values = json_in(file)
            check_format(values.get("format"), STATE_FORMAT)
            if values.pop(_CHECKSUM, None) != _checksum(values):
                raise ValueError(_CHANGED)
            return cls.from_dict(values, file)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, AttributeError, CheckpointError) as error:
            raise unreadable(file, str(error).removeprefix(f"{file}: ")) from None

    def write(self, folder: Path) -> None:
        """Replace the index in a folder, at once; CheckpointError when it cannot be written."""
        values = self.to_dict()
        write_json(folder / INDEX_NAME, {**values, _CHECKSUM: _checksum(values)})


def read_standing(file: Path) -> tuple[Standing, dict[str, Tensor]] | None:
    """What a file of tensors holds, on the CPU; None where there is none. CheckpointError where it is damaged."""
    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt") as opened:
            header = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        if header.get(_CHECKSUM) != _checksum(header.get(_HEADER), tensors):
            raise ValueError(_CHANGED)
        return Standing.from_dict(json_of(header[_HEADER]), file), tensors
    except (OSError, SafetensorError, KeyError, ValueError, CheckpointError) as error:
        raise unreadable(file, str(error).removeprefix(f"{file}: ")) from None


def write_standing(file: Path, standing: Standing, tensors: Mapping[str, Tensor]) -> None:
    """Replace a file of tensors, at once. Raises OSError or SafetensorError."""
    text = json.dumps(standing.to_dict())
    plain = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    header = {_HEADER: text, _CHECKSUM: _checksum(text, plain)}
    with whole_file(file) as partial:
        save_file(plain, partial, metadata=header)


def _checksum(content: object, tensors: Mapping[str, Tensor] | None = None) -> str:
    """SHA-256 of JSON types, and of named tensors in whatever order, in hexadecimal."""
    text = json.dumps(content, sort_keys=True) + digest(sorted((tensors or {}).items()))
    return hashlib.sha256(text.encode()).hexdigest()


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
