"""Reading JSON that anything may stand in: files of models and corpora, and our own ones, which may be damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def json_in(file: Path) -> Any:
    """What a JSON file holds. Raises ValueError where it is none, OSError where it cannot be read."""
    return json_of(file.read_text(encoding="utf-8"))


def json_of(text: str) -> Any:
    """What a text of JSON holds; ValueError where it is none."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
