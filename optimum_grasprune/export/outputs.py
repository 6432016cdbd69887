"""What is read must not be written over: outputs are held against everything that a command or a pruner reads."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..corpora.sources import BUILTIN, SAMPLED
from ..errors import CheckpointError, OptionError
from ..writing import resolved, try_writing
from .staging import is_checkpoint_file

_PART = re.compile(r"\[[^\[\]]*\]$")


@dataclass(frozen=True)
class Source:
    """A file or folder that is read.  what: its role in messages, as in "the model that is to be pruned"."""

    what: str
    path: Path

    def __str__(self) -> str:
        return f"{self.what}, {self.path}"


def local(what: str, *names: str | os.PathLike[str] | None) -> list[Source]:
    """Those of the names that are files or folders of this machine; what is on a hub cannot be written over."""
    return [Source(what, Path(name).absolute()) for name in names if name and os.path.lexists(name)]


def models(what: str, *names: str | None) -> list[Source]:
    """The model folders among the names. One without config.json is none, which is for whoever loads it to say."""
    return [source for source in local(what, *names) if os.path.isfile(source.path / "config.json")]


def corpora(what: str, *entries: str | None) -> list[Source]:
    """The files and folders of corpora, each as PATH, as several with commas between them, or as NAME=PATH[PART]."""
    names: list[str] = []
    for entry in filter(None, entries):
        for text in (entry, entry.partition("=")[2]):
            for part in (text, *text.split(",")):
                names += part.strip(), _PART.sub("", part.strip())
    return local(what, *dict.fromkeys(name for name in names if name not in (BUILTIN, SAMPLED)))


def check_apart(output: str | os.PathLike[str], sources: Iterable[Source]) -> None:
    """Raise CheckpointError when an output folder is, contains or lies inside anything that is read."""
    target = resolved(output)
    for source in sources:
        for path in _real_paths(source.path):
            if _same(target, path):
                raise CheckpointError(f"the output folder {output} is {source.what}")
            if any(_same(target, parent) for parent in path.parents):
                raise CheckpointError(f"the output folder {output} contains {source}: choose another one")
            if any(_same(parent, path) for parent in target.parents):
                raise CheckpointError(f"the output folder {output} lies inside {source}: choose another one")


def check_result_file(file: str, sources: Iterable[Source], output: str | None = None, *, option: str = "json") -> None:
    """Raise OptionError unless an option can write a file that nothing is read from, and no part of OUTPUT."""
    path = Path(os.path.realpath(file))
    if os.path.isdir(path):
        raise OptionError(option, file, "cannot be written")
    if os.path.exists(file) and not os.path.isfile(file):
        return  # a pipe, a terminal: written to, not replaced
    for source in sources:
        for real in _real_paths(source.path):
            if _same(path, real):
                raise OptionError(option, file, f"is {source.what}")
            if os.path.exists(path) and any(_same(parent, real) for parent in path.parents):
                raise OptionError(option, file, f"lies inside {source}: no file of it is replaced")
    if output is not None:
        folder = Path(os.path.realpath(output))
        if _same(path, folder) or (_same(path.parent, folder) and is_checkpoint_file(path.name)):
            raise OptionError(option, file, "is part of the output")
    try:
        if not os.path.isdir(path.parent):
            raise FileNotFoundError(errno.ENOENT, "no such folder")
        try_writing(path.parent)
    except OSError as error:
        raise OptionError(option, file, f"cannot be written: {error.strerror}") from None


def _real_paths(path: Path) -> Iterator[Path]:
    """Where a file or folder lies, and the files that lie elsewhere and are only linked into the folder."""
    yield Path(os.path.realpath(path))
    with suppress(OSError):  # a file, or a folder that cannot be read, which is for whoever reads it to say
        yield from (Path(os.path.realpath(entry)) for entry in path.iterdir() if entry.is_symlink() and entry.is_file())


def _same(one: Path, other: Path) -> bool:
    # By name, and by what the file system says: one folder may be mounted in two places.
    return one == other or (os.path.exists(one) and os.path.exists(other) and os.path.samefile(one, other))
