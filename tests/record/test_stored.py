"""Dataclasses that JSON files hold, wherever they stand in one another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from optimum_grasprune.errors import CheckpointError
from optimum_grasprune.record.stored import INLINE, OPTIONAL, Stored


@dataclass(frozen=True)
class Inner(Stored):
    name: str
    numbers: Mapping[str, float] = field(default_factory=dict, metadata=INLINE)


@dataclass(frozen=True)
class Outer(Stored):
    one: Inner
    other: Inner
    several: tuple[Inner, ...] = ()
    by_name: Mapping[str, Inner] = field(default_factory=dict)
    maybe: Inner | None = field(default=None, metadata=OPTIONAL)


def test_every_place_of_a_dataclass_is_arranged_alike() -> None:
    written = {
        "one": {"name": "a", "x": 1.0},
        "other": {"name": "b", "x": 2.0},
        "several": [{"name": "c", "x": 3.0}, {"name": "d"}],
        "by_name": {"e": {"name": "e", "y": 4.0}},
        "maybe": {"name": "f", "x": 5.0},
    }
    found = Outer.from_dict(written, "file.json")
    assert found == Outer(
        Inner("a", {"x": 1.0}),
        Inner("b", {"x": 2.0}),
        (Inner("c", {"x": 3.0}), Inner("d")),
        {"e": Inner("e", {"y": 4.0})},
        Inner("f", {"x": 5.0}),
    )
    assert found.to_dict() == written


def test_the_place_of_what_is_wrong_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"^file\.json: other\.name: input should be a valid string$"):
        Outer.from_dict({"one": {"name": "a"}, "other": {"name": 1}}, "file.json")
    with pytest.raises(CheckpointError, match=r"^file\.json: several\.0: "):
        Outer.from_dict({"one": {"name": "a"}, "other": {"name": "b"}, "several": [3]}, "file.json")
