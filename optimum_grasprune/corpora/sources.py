"""Where calibration and evaluation texts come from: files, folders, tables, a hub, and two that need no download."""

from __future__ import annotations

import gzip
from importlib import resources
from pathlib import Path

from ..errors import DataError, OptionError
from .corpus import Corpus, Part, text_of
from .slices import sliced_text
from .standard_library import split_of, standard_library_text
from .tables import READERS, is_saved_dataset, read_file_table, read_folder_table, read_hub, read_saved

BUILTIN = "builtin"
SAMPLED = "sampled"
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
    if len(set(names)) < len(names):
        raise OptionError("dataset", source, "names a corpus twice")
    parts = {name: _read(name, split, text_column) for name in names}
    for name, part in parts.items():
        if part.is_empty:
            raise DataError(f"the corpus {name} is empty" + (f" in split {split}" if split else ""))
    return Corpus(parts, source, split)


def names_in(source: str) -> list[str]:
    """The sources that one string names: one, or several with commas between them."""
    if "," not in source or Path(source).exists():
        return [source]
    return [name.strip() for name in source.split(",")]


def is_missing(source: str) -> bool:
    """Whether a source is the path of a file or folder, by its looks, and there is none."""
    path = Path(source)
    return not path.exists() and (source.startswith((".", "/")) or bool(path.suffix))


def _read(source: str, split: str | None, text_column: str) -> Part:
    path = Path(source)
    if source == BUILTIN:
        return text_of(sliced_text(standard_library_text(split_of(split)), split))
    if source == SAMPLED:
        return text_of(sliced_text(_sampled_text(), split))
    if path.is_dir():
        return _read_folder(path, split, text_column)
    if path.is_file():
        return _read_file(path, split, text_column)
    if path.exists() or is_missing(source):
        raise OptionError("dataset", source, "no such file")
    return read_hub(source, split, text_column)


def _read_file(path: Path, split: str | None, text_column: str) -> Part:
    if _kind(path) in READERS:
        return read_file_table(path, _kind(path), split, text_column)
    return text_of(sliced_text(_text_in(path), split))


def _read_folder(path: Path, split: str | None, text_column: str) -> Part:
    if is_saved_dataset(path):
        return read_saved(path, split, text_column)
    files = [file for file in sorted(path.rglob("*")) if file.is_file() and not _is_hidden(file.relative_to(path))]
    if any(_kind(file) in READERS for file in files):
        return read_folder_table(path, split, text_column)
    texts = [_text_in(file) for file in files if _kind(file) in TEXT_SUFFIXES]
    if not texts:
        known = ", ".join((*TEXT_SUFFIXES, *READERS))
        raise DataError(f"the folder {path} holds no files that could be a corpus: {known}")
    return text_of(sliced_text("\n\n".join(texts), split))


def _kind(path: Path) -> str:
    """The ending of a file's name that tells its format, without .gz; empty where there is none."""
    endings = [suffix.lower() for suffix in path.suffixes if suffix != ".gz"]
    return endings[-1] if endings else ""


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _text_in(path: Path) -> str:
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"the corpus {path} is not UTF-8: byte {error.start} cannot be read") from None
    except (OSError, EOFError) as error:
        raise DataError(f"the corpus {path} cannot be read: {error}") from None


def _sampled_text() -> str:
    packed = resources.files("optimum_grasprune").joinpath("corpora", "sampled", "corpus.txt.gz").read_bytes()
    return gzip.decompress(packed).decode()
