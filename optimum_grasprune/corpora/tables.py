"""Corpora that are tables: jsonl, json, csv and parquet files, saved datasets, and those of a hub, by `datasets`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import DataError, OptionError, first_line
from ..reading import json_of
from .corpus import Part, part_of
from .slices import last_position, parse_split
from .text_files import decoded

READERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
"""Endings of tables -> the reader of `datasets`."""

_WIKITEXT2 = {"path": "Salesforce/wikitext", "name": "wikitext-2-raw-v1"}
# One shard of a thousand: all of C4 is 300 GB.
_C4 = {
    "path": "allenai/c4",
    "data_files": {
        "train": "en/c4-train.00000-of-01024.json.gz",
        "validation": "en/c4-validation.00000-of-00008.json.gz",
    },
}
# A shard has 2 GB, of which streaming takes what the first documents lie in.
_FINEWEB_EDU = {"path": "HuggingFaceFW/fineweb-edu", "name": "sample-10BT", "streaming": True}
HUB_ALIASES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("wikitext2", "wikitext-2", "wikitext-2-raw-v1"), _WIKITEXT2),
    **dict.fromkeys(("c4", "allenai/c4"), _C4),
    **dict.fromkeys(("fineweb-edu", "HuggingFaceFW/fineweb-edu"), _FINEWEB_EDU),
}
"""Usual names of Hugging Face datasets -> how they are loaded."""

_LARGEST_UNPACKED = 2**33
_DOCUMENTS = 5_000
"""Documents of a corpus of the web that are read, unless a slice says which."""

_SAVED = ("dataset_info.json", "dataset_dict.json")
"""What `save_to_disk` writes into the folder of a dataset, and of one with several splits."""


def read_file_table(path: Path, ending: str, split: str | None, column: str) -> Part:
    """A column of a table in a file. The file is one split: the name of another is of no account, a slice counts."""
    parse_split(split, 0)
    _check_file(path, ending)
    rows = _loaded(f"the corpus {path}", path=READERS[ending], data_files=str(path), split="train")
    return _column(_taken(rows, split), column, str(path))


def read_folder_table(path: Path, split: str | None, column: str) -> Part:
    """A column of the tables in a folder, whose splits `datasets` tells by the files' names, as on the hub."""
    return _column(_loaded(f"the folder {path}", path=str(path), split=_named(split)), column, str(path))


def is_saved_dataset(path: Path) -> bool:
    """Whether `save_to_disk` wrote the folder."""
    return any((path / name).is_file() for name in _SAVED)


def read_saved(path: Path, split: str | None, column: str) -> Part:
    """A column of a dataset that `save_to_disk` wrote; of several splits 'train', unless another is named."""
    import datasets

    try:
        saved = datasets.load_from_disk(str(path))
    except Exception as error:  # pyarrow, JSON and the file system each have their own
        raise DataError(f"the folder {path} cannot be loaded: {_innermost(error)}") from None
    if isinstance(saved, datasets.DatasetDict):
        name = parse_split(split, 0)[0] or ("train" if "train" in saved else next(iter(saved), ""))
        if name not in saved:
            raise OptionError("dataset_split", split, f"{path} has the splits {', '.join(saved)}")
        saved = saved[name]
    return _column(_taken(saved, split), column, str(path))


def read_hub(source: str, split: str | None, column: str) -> Part:
    """A column of a dataset on the hub, NAME or NAME:CONFIG; its split 'train', unless another is named."""
    name, _, config = source.partition(":")
    where = HUB_ALIASES.get(source, {"path": name, "name": config or None})
    split = _named(split)
    if where.get("streaming"):
        first = max(_DOCUMENTS, last_position(split))
        rows = _loaded(f"the dataset {source}", first, **where, split=parse_split(split, first)[0])
        return _column(_taken(rows, split), column, source)
    if where is _C4 and "[" not in split:
        split = f"{split}[:{_DOCUMENTS}]"
    return _column(_loaded(f"the dataset {source}", **where, split=split), column, source)


def _named(split: str | None) -> str:
    """The split as `datasets` wants it, which knows no slice without a name."""
    if split is None:
        return "train"
    return f"train{split}" if split.startswith("[") else split


def _taken(rows: Any, split: str | None) -> Any:
    _, taken = parse_split(split, len(rows))
    return rows.select(taken if taken else [])  # of no rows it takes no range


def _loaded(what: str, first: int | None = None, **where: Any) -> Any:
    """A table of `datasets`. what: it is called in messages.  first: rows at most, of one that is streamed."""
    import datasets

    try:
        with _quietly():
            rows = datasets.load_dataset(**where)
            return rows if first is None else datasets.Dataset.from_list(list(rows.take(first)))
    except Exception as error:  # datasets raises dozens of types for a missing, offline or malformed source
        if "corresponds to no data" in str(error):  # a header and no rows
            raise DataError(f"{what} is empty") from None
        broken = _broken_json(Path(where["data_files"])) if where["path"] == "json" else None
        raise DataError(f"{what} cannot be loaded: {broken or _innermost(error)}") from None


@contextmanager
def _quietly() -> Iterator[None]:
    """While the block runs, `datasets` draws no bars of its own over ours, and leaves errors to who catches them."""
    import datasets

    drawn, level = not datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if drawn:
            datasets.enable_progress_bars()


def _column(rows: Any, column: str, source: str) -> Part:
    if column not in rows.column_names:
        raise OptionError("text_column", column, f"{source} has the columns {', '.join(rows.column_names)}")
    name = f"the column {column} of {source}"
    return part_of(_values(rows[column], name), name)


def _values(column: Any, name: str) -> Iterator[Any]:
    """The values of a column; DataError where one cannot be made of what lies in the table."""
    try:
        yield from column
    except Exception as error:  # `datasets` decodes them one by one, and some of what it takes it cannot give
        raise DataError(f"{name} cannot be loaded: {type(error).__name__}: {first_line(error)}") from None


def _check_file(path: Path, ending: str) -> None:
    """Raise DataError where a file is empty, or where text that should be UTF-8 is not, or cannot be unpacked."""
    if ending == ".parquet":
        some = path.stat().st_size > 0
    else:
        size, some = 0, False
        for piece in decoded(path):
            some = some or bool(piece.strip())
            size += len(piece)
            if path.suffix == ".gz" and size > _LARGEST_UNPACKED:  # `datasets` unpacks it onto the disk
                raise DataError(f"the corpus {path} unpacks to more than {_LARGEST_UNPACKED:,} characters")
    if not some:
        raise DataError(f"the corpus {path} is empty")


def _broken_json(path: Path) -> str | None:
    """Where a JSON file, or a file of JSON lines, is no JSON; None where nothing is wrong with that."""
    text = "".join(decoded(path))
    try:
        json_of(text)
    except ValueError:
        return next(filter(None, map(_broken_line, range(1, 1 + text.count("\n") + 1), text.split("\n"))), None)
    return None


def _broken_line(number: int, line: str) -> str | None:
    try:
        if line.strip() and not isinstance(json_of(line), dict):
            return f"line {number} is no JSON object"
    except ValueError as error:
        return f"line {number} is not JSON: {error}"
    return None


def _innermost(error: BaseException) -> str:
    """The first line of what an error was caused by at last: wrappers say no more than that there was one."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
