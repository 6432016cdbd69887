"""Reading JSON that anything may stand in: files of models and corpora, and our own ones, which may be damaged."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any


def json_in(file: Path, *, finite: bool = False) -> Any:
    """What a JSON file holds. Raises ValueError where it is none, OSError where it cannot be read.

    finite: as in `json_of`.
    """
    return json_of(file.read_text(encoding="utf-8"), finite=finite)


def json_of(text: str, *, finite: bool = False) -> Any:
    """What a text of JSON holds; ValueError where it is none.

    finite: whether NaN and infinities, which Python alone writes, are refused: they could not be written again.
    """
    try:
        if finite:
            return json.loads(text, parse_constant=_finite, parse_float=_finite)
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text} is no finite number")
    return value
