"""Corpora: where text comes from, and how calibration sequences are drawn from it.

Shape suffixes: T tokens of a corpus, N sequences, S sequence.
"""

from __future__ import annotations

import gzip
import hashlib
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..config import CalibrationOptions
from ..errors import DataError, OptionError
from .standard_library import standard_library_text

_WIKITEXT2 = {"path": "Salesforce/wikitext", "name": "wikitext-2-raw-v1"}
# One shard of a thousand, and of that the first documents: all of C4 is 300 GB.
_C4 = {
    "path": "allenai/c4",
    "data_files": {
        "train": "en/c4-train.00000-of-01024.json.gz",
        "validation": "en/c4-validation.00000-of-00008.json.gz",
    },
    "split": "train[:5000]",
}
HUB_ALIASES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("wikitext2", "wikitext-2", "wikitext-2-raw-v1"), _WIKITEXT2),
    **dict.fromkeys(("c4", "allenai/c4"), _C4),
}
"""Usual names of Hugging Face datasets -> how they are loaded."""

CALIBRATION_TOKENS = 2**17
"""Tokens in all calibration sequences together, unless their number is given."""

_TABLE_READERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
_SHIPPED = "sampled"
_SLICE = re.compile(r"(?P<name>\w*)(\[(?P<start>\d+%?)?:(?P<stop>\d+%?)?\])?")
_DOCUMENT_END = "<|endoftext|>"


@dataclass(frozen=True)
class Corpus:
    """A text and where it is from. source: as the user named it.  split: as the user named it, or None."""

    text: str
    source: str
    split: str | None

    @property
    def sha256(self) -> str:
        """Hash of the text in UTF-8."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """What a checkpoint records of the corpus it was calibrated on."""
        return {"source": self.source, "split": self.split, "characters": len(self.text), "sha256": self.sha256}


def load_corpus(source: str, split: str | None = None, text_column: str = "text") -> Corpus:
    """Read a corpus: 'builtin', 'sampled', a file, or a Hugging Face dataset as NAME or NAME:CONFIG.

    'builtin' is the standard library's text, 'sampled' the English text that comes with this package. Several, with
    commas between them, are mixed in equal parts; split and column then hold for all.

    `<|endoftext|>` between documents becomes a newline, since most tokenizers know no such token.
    Raises DataError when it cannot be read or is empty.
    """
    if "," in source and not Path(source).exists():
        parts = [load_corpus(part.strip(), split, text_column).text for part in source.split(",")]
        return Corpus(mixed(parts), source, split)
    path = Path(source)
    if source == "builtin":
        name = (split or "").partition("[")[0] or "train"
        text = _sliced(standard_library_text(name), split)
    elif source == _SHIPPED:
        text = _sliced(_shipped_text(), split)
    elif path.is_file():
        text = _read_file(path, split, text_column)
    elif path.exists() or source.startswith((".", "/")) or path.suffix:
        raise OptionError("dataset", source, "no such file")
    else:
        text = _read_hub(source, split, text_column)
    return _checked(text, source, split, f"the corpus {source} is empty" + (f" in split {split}" if split else ""))


def mixed(texts: Sequence[str], pieces: int = 64) -> str:
    """As much of each text as the shortest one has, in turns of a `pieces`-th, so that any long stretch holds all."""
    size = min(len(text) for text in texts)
    bounds = [size * piece // pieces for piece in range(pieces + 1)]
    return "\n\n".join(text[start:stop] for start, stop in itertools.pairwise(bounds) for text in texts)


def corpus_in_memory(texts: Sequence[str]) -> Corpus:
    """A corpus of strings; DataError when there is no text in them."""
    text = "\n\n".join([texts] if isinstance(texts, str) else texts)
    return _checked(text, "in memory", None, "the texts given for calibration are empty")


def _checked(text: str, source: str, split: str | None, when_empty: str) -> Corpus:
    text = text.replace(_DOCUMENT_END, "\n")
    if not text.strip():
        raise DataError(when_empty)
    return Corpus(text, source, split)


def _shipped_text() -> str:
    packed = resources.files("optimum_grasprune").joinpath("data", "corpus.txt.gz").read_bytes()
    return gzip.decompress(packed).decode()


def _read_file(path: Path, split: str | None, text_column: str) -> str:
    suffixes = [suffix for suffix in path.suffixes if suffix != ".gz"]
    reader = _TABLE_READERS.get(suffixes[-1].lower()) if suffixes else None
    if reader:
        return _read_table({"path": reader, "data_files": str(path)}, split, text_column, str(path))
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"the corpus {path} is not UTF-8: byte {error.start} cannot be read") from None
    except (OSError, EOFError) as error:
        raise DataError(f"the corpus {path} cannot be read: {error}") from None
    return _sliced(text, split)


def _sliced(text: str, split: str | None) -> str:
    """The part of a text that a slice like 'train[10%:90%]' names; the name before the brackets is of no account."""
    if split is None:
        return text
    match = _SLICE.fullmatch(split)
    if not match:
        raise OptionError("dataset_split", split, "should look like 'train', 'train[:90%]' or '[90%:]'")
    return text[_position(match["start"], len(text), 0) : _position(match["stop"], len(text), len(text))]


def _position(mark: str | None, length: int, default: int) -> int:
    if mark is None:
        return default
    return length * int(mark[:-1]) // 100 if mark.endswith("%") else int(mark)


def _read_hub(source: str, split: str | None, text_column: str) -> str:
    name, _, config = source.partition(":")
    where = HUB_ALIASES.get(source, {"path": name, "name": config or None})
    return _read_table(where, split, text_column, source)


def _read_table(where: dict[str, Any], split: str | None, text_column: str, source: str) -> str:
    import datasets

    try:
        rows = datasets.load_dataset(**{"split": "train", **where, **({"split": split} if split else {})})
    except Exception as error:  # datasets raises dozens of types for a missing, offline or malformed source
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(f"the dataset {source} cannot be loaded: {reason}") from None
    if text_column not in rows.column_names:
        raise OptionError("text_column", text_column, f"{source} has the columns {', '.join(rows.column_names)}")
    return "\n\n".join(str(text) for text in rows[text_column])


def tokenize(corpus: Corpus, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """The whole corpus as one run of tokens without special ones, shape (T,), int64."""
    ids = tokenizer(corpus.text, add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor(ids, dtype=torch.int64)


def sample_sequences(tokens_T: Tensor, options: CalibrationOptions, length: int, seed: int) -> Tensor:
    """Calibration sequences drawn at random, shape (N, length), int64.  (N: `num_samples`, or by CALIBRATION_TOKENS.)

    The corpus is cut into blocks from a random offset and the blocks are shuffled; once they are used up it is cut anew
    from another offset. So every part of the corpus is seen about equally often, and no sequence twice.
    Raises DataError when the corpus is shorter than one sequence, OptionError when it holds fewer different ones.
    """
    count = options.num_samples or max(1, CALIBRATION_TOKENS // length)
    if len(tokens_T) < length:
        raise DataError(
            f"the calibration corpus {options.dataset} has {len(tokens_T)} tokens, less than one sequence of {length}"
        )
    if (different := len(tokens_T) - length + 1) < count:
        raise OptionError(
            "num_samples",
            count,
            f"the calibration corpus {options.dataset} has {len(tokens_T)} tokens, "
            f"which hold only {different} different sequences of {length}",
        )
    generator = torch.Generator().manual_seed(seed)
    drawn: list[Tensor] = []
    used: set[int] = set()
    while sum(len(blocks) for blocks in drawn) < count:
        slack = min(length, len(tokens_T) - length + 1)
        offset = int(torch.randint(slack, (1,), generator=generator))
        if offset in used:
            continue
        used.add(offset)
        blocks_NS = tokens_T[offset : offset + (len(tokens_T) - offset) // length * length].view(-1, length)
        drawn.append(blocks_NS[torch.randperm(len(blocks_NS), generator=generator)])
    return torch.cat(drawn)[:count]


def hold_out(tokens_T: Tensor, count: int, length: int) -> tuple[Tensor, Tensor]:
    """(what stays for calibration, what is held out of it): the corpus without its end, and its end in sequences.

    Returns shapes (T',) and (count, length). At most an eighth of the corpus is held out, so that from a short corpus
    there are fewer sequences than asked, or none.
    """
    count = min(count, len(tokens_T) // (8 * length))
    rest = len(tokens_T) - count * length
    return tokens_T[:rest], tokens_T[rest:].view(count, length)
