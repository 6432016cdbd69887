"""The texts that perplexity is measured on, by the names that tables show."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..corpora import Corpus, load_corpus, source_and_split
from ..errors import OptionError
from ..record.describe import public_name
from ..writing import slug

_CORPUS = re.compile(r"(?P<name>[^=]+)=(?P<source>.+)")


def read_corpora(entries: Sequence[str], text_column: str, option: str = "evaluate") -> dict[str, Corpus]:
    """Evaluation corpora by name. entries: each as NAME=PATH or NAME=PATH[PART], PART a slice or the name of a split.

    option: that gave them.  Raises OptionError or DataError.
    """
    corpora: dict[str, Corpus] = {}
    for entry in entries:
        match = _CORPUS.fullmatch(entry)
        if not match:
            raise OptionError(option, entry, "should look like NAME=PATH or NAME=PATH[90%:]")
        if slug(match["name"]) in map(slug, corpora):
            raise OptionError(option, entry, "another corpus has this name")
        corpora[match["name"]] = read_corpus(match["source"], text_column, option, entry)
    return corpora


def public_entry(entry: str) -> str:
    """NAME=SOURCE[PART] for a page, without paths of this machine."""
    name, _, source = entry.partition("=")
    source, split = source_and_split(source)
    return f"{name}, `{public_name(source)}`" + (f", `{split}`" if split else "")


def read_corpus(source: str, text_column: str, option: str, entry: str | None = None) -> Corpus:
    """The corpus of an option that names it as PATH or PATH[PART]. entry: its value, where the source is part of it."""
    try:
        return load_corpus(*source_and_split(source), text_column)
    except OptionError as error:
        raise OptionError(option, entry or source, error.reason) from None
