"""Frozen dataclasses that JSON files hold: one way out, one way in, and the errors of a damaged file.

A file of a later version may hold more than its reader knows: that is left out. A value that is missing or of another
type is an error that names the file and the field.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError, model_validator
from typing_extensions import Self

from ..errors import CheckpointError
from ..reading import json_in

INLINE = {"stored": "inline"}
"""Metadata of a field that is a mapping of numbers: they stand in the object itself, beside its other fields."""

OPTIONAL = {"stored": "optional"}
"""Metadata of a field that is not written while it is None."""


class Stored:
    """Base of a frozen dataclass whose content is a JSON object."""

    def to_dict(self) -> dict[str, Any]:
        """The content as JSON types, in the order of the fields."""
        values: dict[str, Any] = {}
        for entry in fields(self):  # type: ignore[arg-type]
            value = getattr(self, entry.name)
            if entry.metadata == INLINE:
                values.update(self.written_inline(value))
            elif value is not None or entry.metadata != OPTIONAL:
                values[entry.name] = _as_json(value)
        return values

    @classmethod
    def from_dict(cls, values: object, source: object) -> Self:
        """The inverse of `to_dict`. source: the file, which a CheckpointError names together with the field."""
        try:
            adapter: TypeAdapter[Self] = _adapter(cls)  # type: ignore[arg-type]
            return adapter.validate_python(values)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            is_object = first["type"] != "dataclass_type"
            own = first.get("ctx", {}).get("error", first["msg"])  # without the prefix that pydantic puts before it
            reason = str(own) if is_object else "should be an object"
            place = ".".join(map(str, first["loc"]))
            raise CheckpointError(
                f"{source}: {f'{place}: ' if place else ''}{reason[:1].lower()}{reason[1:]}"
            ) from None

    @classmethod
    def read(cls, path: Path) -> Self:
        """The content of a file; CheckpointError where it is damaged. Raises OSError where it cannot be read."""
        return cls.from_dict(read_json(path), path)

    @classmethod
    def arranged(cls, values: Any) -> Any:
        """The values as the fields have them, from what a file holds; what is no JSON object is returned as it is."""
        inner = [entry.name for entry in fields(cls) if entry.metadata == INLINE]  # type: ignore[arg-type]
        if not inner or not isinstance(values, Mapping):
            return values
        known = {entry.name for entry in fields(cls)}  # type: ignore[arg-type]
        beside = {name: value for name, value in values.items() if name not in known and _is_number(value)}
        return {**values, **dict.fromkeys(inner, beside)}

    @classmethod
    def written_inline(cls, values: Mapping[str, float]) -> Mapping[str, float | None]:
        """What of an inline field is written."""
        return values

    @model_validator(mode="before")
    @classmethod
    def _arrange(cls, values: Any) -> Any:
        """Have pydantic arrange the values wherever such a dataclass is a field of another."""
        return cls.arranged(values)


def read_json(path: Path) -> Any:
    """What a JSON file holds; CheckpointError where it is none. Raises OSError where it cannot be read."""
    try:
        return json_in(path, finite=True)
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from None


def check_format(found: object, newest: int) -> None:
    """Raise ValueError for a file whose format number is of a later version than this one."""
    if isinstance(found, int) and found > newest:
        raise ValueError(f"the format is {found}, which a later version wrote; this one reads formats up to {newest}")


@cache
def _adapter(cls: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(cls)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _as_json(value: Any) -> Any:
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {name: _as_json(entry) for name, entry in value.items()}
    if isinstance(value, tuple | list):
        return [_as_json(entry) for entry in value]
    return value
