"""Writing files and folders of results: whole or not at all, and whether it can be done."""

from __future__ import annotations

import json
import os
import re
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import CheckpointError

PARTIAL = ".partial"
"""Ends the name of a file that is being written."""

_SLUG = re.compile(r"[^\w.+-]+")


def resolved(output: str | os.PathLike[str]) -> Path:
    """Where an output really lies, links followed; CheckpointError when one of them leads nowhere."""
    path = Path(output).absolute()
    for part in (path, *path.parents):
        if os.path.islink(part) and not os.path.exists(part):  # unlike Path's, they never raise
            raise CheckpointError(f"the output {output} cannot be written: {part} is a link to nothing")
    return Path(os.path.realpath(output))


def made_folders(folder: Path) -> list[Path]:
    """Make a folder and those above it that are missing; the ones that were made, outermost first. OSError."""
    missing = [part for part in (folder, *folder.parents) if not os.path.exists(part)]
    made: list[Path] = []
    try:
        for part in reversed(missing):
            part.mkdir()
            made.append(part)
    except OSError:
        for part in reversed(made):
            part.rmdir()
        raise
    return made


def try_writing(folder: Path) -> None:
    """Raise OSError unless a folder can be made, if need be, and written to; nothing of the attempt stays.

    Permissions alone do not tell: root passes them all, and fails on a file system that is mounted read-only.
    """
    made = made_folders(folder)
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".", dir=folder))
    finally:
        for part in reversed(made):
            part.rmdir()


def results_folder(output: Path, marker: str, what: str) -> Path:
    """Make a folder for results, or find one that holds some already, so that work that was stopped can go on.

    marker: the folder inside it that says so, which is returned.  what: the name of such results in messages.
    Raises CheckpointError when it is something else, or cannot be written.
    """
    inner = resolved(output) / marker
    if os.path.exists(output) and not output.is_dir():
        raise CheckpointError(f"the output {output} is a file, not a folder")
    if os.path.isdir(output) and any(output.iterdir()) and not inner.is_dir():
        raise CheckpointError(f"the output folder {output} holds something other than a {what}")
    try:
        inner.mkdir(parents=True, exist_ok=True)
        for folder in (output, inner):
            try_writing(folder)
    except OSError as error:
        raise CheckpointError(f"the output folder {output} cannot be written: {error.strerror}") from None
    return inner


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write JSON with each object on its own line and lists of numbers on one; replaces the file at once."""
    write_file(path, (_pretty(content) + "\n").encode())


def write_file(path: Path, content: bytes) -> None:
    """Write a file; what was there stays until the new one is whole. CheckpointError when it cannot be written.

    A link stays one, and what is no file (a terminal, a pipe, /dev/null) is written to, not replaced. Of several
    processes that write the same file at once, on whatever machines, the last one's content is there, whole.
    """
    target = Path(os.path.realpath(path))
    partial = partial_of(target)
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(content)
            return
        partial.write_bytes(content)
        os.replace(partial, target)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error.strerror}") from None
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def partial_of(target: Path, host: str | None = None, pid: int | None = None) -> Path:
    """Where a process writes a file before it takes its place; by default this process on this machine."""
    writer = f"{slug(host or socket.gethostname())}-{pid or os.getpid()}"
    return target.with_name(f".{target.name[:100]}.{writer}{PARTIAL}")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file to write that takes the place of `path` when the block ends well, and vanishes when it does not. OSError.

    For what is too large to be held as bytes beside what it is made from.
    """
    target = Path(os.path.realpath(path))
    partial = target.with_name(f".{target.name}{PARTIAL}")
    try:
        yield partial
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


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
