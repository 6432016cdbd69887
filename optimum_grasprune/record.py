"""The content of `grasp_config.json`: its format, and what older ones mean in today's words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RECORD_FORMAT = 2
"""Format of the records that this version writes.

1: version 0.1. Sequences never started with a BOS token, least squares were always the robust ones, and several corpora
were mixed as one text before anything was held out.
"""

_OF_FORMAT_1: dict[str, Any] = {"bos": False, "least_squares": "robust"}


def in_todays_words(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with the options that its version did not have yet spelled out in its recipe; its format stays."""
    if record.get("format") != 1:
        return dict(record)
    return {**record, "recipe": {**_OF_FORMAT_1, **record["recipe"]}}


def mixed_as_one_text(record: Mapping[str, Any]) -> bool:
    """Whether the record's calibration sequences were drawn from several corpora in the way of format 1."""
    return record.get("format") == 1 and "," in str((record.get("calibration") or {}).get("source", ""))
