"""Where calibration and evaluation texts come from: files, folders, tables, a hub, and two that need no download."""

from __future__ import annotations

import gzip
import os
from importlib import resources
from pathlib import Path

from ..errors import DataError, OptionError
from .corpus import Corpus, Part, text_of
from .slices import sliced_text
from .standard_library import split_of, standard_library_text
from .tables import READERS, is_saved_dataset, read_file_table, read_folder_table, read_hub, read_saved
from .text_files import text_in

BUILTIN = "builtin"
SAMPLED = "sampled"
REHEARSED, UNREHEARSED = "[:90%]", "[90%:]"
"""What of 'sampled' is rehearsed, and what is not."""
TEXT_SUFFIXES = (".txt", ".text", ".md", ".rst")
"""Endings of the text files that are read from a folder; a file that is named is text whatever its ending."""


def load_corpus(source: str, split: str | None = None, text_column: str = "text") -> Corpus:
    """Read a corpus: 'builtin', 'sampled', a file, a folder, or a Hugging Face dataset as NAME or NAME:CONFIG.

    'builtin' is the standard library's text, 'sampled' the English text that comes with this package. A folder holds
    text files, or tables, or is one that `save_to_disk` wrote. Several sources, with commas between them, become the
    parts of one corpus; split and column then hold for all. A column of a table is text, or conversations.
    Raises DataError or OptionError when it cannot be read or is empty.
    """
    names = names_in(source)
    if not all(names):
        raise OptionError("dataset", source, "holds an empty name")
    if len(set(names)) < len(names):
        raise OptionError("dataset", source, "names a corpus twice")
    parts = {name: _read(name, split, text_column) for name in names}
    for name, part in parts.items():
        if part.is_empty:
            raise DataError(f"the corpus {name} is empty" + (f" in split {split}" if split else ""))
    return Corpus(parts, source, split)


def rehearsal_text(count: int, characters: int) -> Corpus:
    """Pieces of so many characters that begin at words evenly spread over 'sampled[:90%]', as the parts of a corpus.

    The rest is left for measuring.
    """
    text = sliced_text(_sampled_text(), REHEARSED)
    pieces = {}
    for place in range(count):
        begin = text.find(" ", max(0, len(text) - characters) * place // count) + 1
        pieces[f"{SAMPLED} {place}"] = text_of(text[begin : begin + characters])
    return Corpus(pieces, SAMPLED, None)


def names_in(source: str) -> list[str]:
    """The sources that one string names: one, or several with commas between them."""
    if "," not in source or os.path.exists(source):
        return [source]
    return [name.strip() for name in source.split(",")]


def is_missing(source: str) -> bool:
    """Whether a source is the path of a file or folder, by its looks, and there is none."""
    path = Path(source)
    return not os.path.exists(source) and (source.startswith((".", "/")) or bool(path.suffix))


def _read(source: str, split: str | None, text_column: str) -> Part:
    path = Path(source)
    if source == BUILTIN:
        return text_of(sliced_text(standard_library_text(split_of(split)), split))
    if source == SAMPLED:
        return text_of(sliced_text(_sampled_text(), split))
    if os.path.isdir(source):  # unlike Path's, these never raise: a name may be too long for any file
        return _read_folder(path, split, text_column)
    if os.path.isfile(source):
        return _read_file(path, split, text_column)
    if os.path.exists(source) or is_missing(source):
        raise OptionError("dataset", source, "no such file")
    return read_hub(source, split, text_column)


def _read_file(path: Path, split: str | None, text_column: str) -> Part:
    if _kind(path) in READERS:
        return read_file_table(path, _kind(path), split, text_column)
    return text_of(text_in([path], split, str(path)))


def _read_folder(path: Path, split: str | None, text_column: str) -> Part:
    if is_saved_dataset(path):
        return read_saved(path, split, text_column)
    files = [file for file in sorted(path.rglob("*")) if file.is_file() and not _is_hidden(file.relative_to(path))]
    if any(_kind(file) in READERS for file in files):
        return read_folder_table(path, split, text_column)
    texts = [file for file in files if _kind(file) in TEXT_SUFFIXES]
    if not texts:
        known = ", ".join((*TEXT_SUFFIXES, *READERS))
        raise DataError(f"the folder {path} holds no files that could be a corpus: {known}")
    return text_of(text_in(texts, split, str(path)))


def _kind(path: Path) -> str:
    """The ending of a file's name that tells its format, without .gz; empty where there is none."""
    endings = [suffix.lower() for suffix in path.suffixes if suffix != ".gz"]
    return endings[-1] if endings else ""


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _sampled_text() -> str:
    packed = resources.files("optimum_grasprune").joinpath("corpora", "sampled", "corpus.txt.gz").read_bytes()
    return gzip.decompress(packed).decode()
