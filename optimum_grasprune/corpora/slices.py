"""Splits and slices of them, as in 'train', 'train[:90%]' or '[90%:]': of characters in a text, of rows in a table."""

from __future__ import annotations

import re

from ..errors import OptionError

_WITH_PART = re.compile(r"(?P<source>.+)\[(?P<part>[^\[\]]+)\]")
_SLICE = re.compile(r"(?P<name>\w*)(\[(?P<start>\d{1,18}%?)?:(?P<stop>\d{1,18}%?)?\])?")


def parse_split(split: str | None, length: int) -> tuple[str, range]:
    """(name of the split, positions that its slice takes of `length`); an empty name where only a slice is given.

    Percentages are rounded down. Raises OptionError when the split does not look like one.
    """
    match = _matched(split)
    start, stop = _position(match["start"], length, 0), _position(match["stop"], length, length)
    return match["name"], range(length)[start:stop]


def last_position(split: str) -> int:
    """The last position that a slice gives as a number, not as a percentage; 0 where it gives none.

    Raises OptionError when the split does not look like one.
    """
    match = _matched(split)
    marks = (mark for mark in (match["start"], match["stop"]) if mark and not mark.endswith("%"))
    return max(map(int, marks), default=0)


def source_and_split(named: str) -> tuple[str, str | None]:
    """A corpus given as SOURCE, or as SOURCE[PART] with PART a slice or the name of a split: (source, split)."""
    match = _WITH_PART.fullmatch(named)
    if match is None:
        return named, None
    part = match["part"]
    return match["source"], f"[{part}]" if ":" in part else part


def sliced_text(text: str, split: str | None) -> str:
    """The part of a text that a slice like 'train[10%:90%]' names; the name before the brackets is of no account."""
    _, taken = parse_split(split, len(text))
    return text[taken.start : taken.stop]


def _matched(split: str | None) -> re.Match[str]:
    match = _SLICE.fullmatch(split or "")
    if not match:
        raise OptionError("dataset_split", split, "should look like 'train', 'train[:90%]' or '[90%:]'")
    return match


def _position(mark: str | None, length: int, default: int) -> int:
    if mark is None:
        return default
    return length * int(mark[:-1]) // 100 if mark.endswith("%") else int(mark)
