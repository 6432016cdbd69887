"""Files and folders that are there whole or not at all."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import CheckpointError

_SLUG = re.compile(r"[^\w.+-]+")


@contextmanager
def staged_folder(output: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """A folder to write into that becomes `output` when the block ends well and vanishes when it does not.

    Raises CheckpointError when `output` cannot be written, or holds something and `overwrite` is false.
    """
    target = Path(output).absolute()
    check_output(target, overwrite=overwrite)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise CheckpointError(f"the output folder {output} cannot be written: {error.strerror}") from None
    try:
        yield staging
        _open_up(staging)
        _replace(target, staging)
    except OSError as error:
        raise CheckpointError(f"the output folder {output} cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def check_output(output: str | os.PathLike[str], *, overwrite: bool) -> None:
    """Raise CheckpointError unless a checkpoint may be written there; called before any long work starts."""
    target = Path(output)
    if target.exists() and not target.is_dir():
        raise CheckpointError(f"the output {output} is a file, not a folder")
    if target.is_dir() and any(target.iterdir()):
        if not overwrite:
            raise CheckpointError(f"the output folder {output} is not empty; use --overwrite to replace it")
        if not (target / "config.json").is_file():
            raise CheckpointError(f"the output folder {output} holds something other than a model; it is not replaced")
    nearest = next(folder for folder in (target.absolute(), *target.absolute().parents) if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise CheckpointError(f"the output folder {output} cannot be written: no permission in {nearest}")


def results_folder(output: Path, marker: str, what: str) -> Path:
    """Make a folder for results, or find one that holds some already, so that work that was stopped can go on.

    marker: the folder inside it that says so, which is returned.  what: the name of such results in messages.
    Raises CheckpointError when it is something else, or cannot be written.
    """
    inner = output / marker
    if output.exists() and not output.is_dir():
        raise CheckpointError(f"the output {output} is a file, not a folder")
    if output.is_dir() and any(output.iterdir()) and not inner.is_dir():
        raise CheckpointError(f"the output folder {output} holds something other than a {what}")
    try:
        inner.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"the output folder {output} cannot be written: {error.strerror}") from None
    for folder in (output, inner):
        if not os.access(folder, os.W_OK):
            raise CheckpointError(f"the output folder {output} cannot be written: no permission in {folder}")
    return inner


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON with each object on its own line and lists of numbers on one; replaces the file at once."""
    write_file(path, (_pretty(content) + "\n").encode())


def write_file(path: Path, content: bytes) -> None:
    """Write a file; what was there stays until the new one is whole. CheckpointError when it cannot be written."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise CheckpointError(f"{path} cannot be written: {error.strerror}") from None


def slug(name: str) -> str:
    """A name as part of a file name."""
    return _SLUG.sub("-", name)


def _pretty(value: Any, indent: int = 0) -> str:
    # json.dumps(indent=2) would put each of hundreds of thousands of kept indices on a line of its own.
    if isinstance(value, dict) and value:
        pad = " " * (indent + 2)
        items = (f"{pad}{json.dumps(str(key))}: {_pretty(item, indent + 2)}" for key, item in value.items())
        return "{\n" + ",\n".join(items) + "\n" + " " * indent + "}"
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        pad = " " * (indent + 2)
        return "[\n" + ",\n".join(pad + json.dumps(item) for item in value) + "\n" + " " * indent + "]"
    return json.dumps(value, allow_nan=False)


def _replace(target: Path, staging: Path) -> None:
    if not target.exists():
        staging.rename(target)
        return
    # A folder cannot be renamed over a full one: the old one steps aside, and comes back if the move fails.
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
    target.rename(aside / "old")
    try:
        staging.rename(target)
    except OSError:
        (aside / "old").rename(target)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _open_up(folder: Path) -> None:
    # Temporary folders and safetensors files are private to their maker; a server often runs as another user.
    umask = os.umask(0)
    os.umask(umask)
    for path in (folder, *folder.rglob("*")):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)
