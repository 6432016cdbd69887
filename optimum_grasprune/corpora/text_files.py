"""Text files of any size, packed or not: read block by block, so that nothing is held but what is asked for."""

from __future__ import annotations

import codecs
import gzip
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from ..errors import DataError
from .corpus import check_size
from .slices import parse_split

_BLOCK = 2**20
_BETWEEN_FILES = "\n\n"


def text_in(files: Sequence[Path], split: str | None, name: str) -> str:
    """The text of some files, one after another, or the part of it that a slice names. name: of the corpus.

    Raises DataError where it cannot be read, or is too long, OptionError for a split that looks like none.
    """
    parse_split(split, 0)
    start, stop = 0, sys.maxsize
    if split is not None and "[" in split:
        _, taken = parse_split(split, sum(map(len, _pieces(files))))
        start, stop = taken.start, taken.stop
    kept: list[str] = []
    position = size = 0
    for piece in _pieces(files):
        kept.append(piece[max(0, start - position) : max(0, stop - position)])
        position += len(piece)
        size += len(kept[-1])
        check_size(size, name)
    return "".join(kept)


def decoded(path: Path) -> Iterator[str]:
    """The text of a file, unpacked where its name ends in .gz, block by block; DataError where it cannot be read."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    start, block = 0, b"."
    try:
        with unpacked(path) as file:
            while block:
                block = file.read(_BLOCK)
                waiting = len(decoder.getstate()[0])  # of a character that the last block ended in
                start -= waiting
                yield decoder.decode(block, final=not block)
                start += waiting + len(block)
    except UnicodeDecodeError as error:
        raise DataError(f"the corpus {path} is not UTF-8: byte {start + error.start} cannot be read") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"the corpus {path} cannot be read: {error}") from None


def unpacked(path: Path) -> IO[Any]:
    """A file opened to read its bytes, those that are packed in it where its name ends in .gz."""
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _pieces(files: Sequence[Path]) -> Iterator[str]:
    for number, file in enumerate(files):
        yield _BETWEEN_FILES if number else ""
        yield from decoded(file)
