"""What every group of options is: frozen, validated, and with what the command line needs to know of each field."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, JsonValue, ValidationError
from pydantic_core import PydanticCustomError
from typing_extensions import Self

from ..errors import OptionError


@dataclass(frozen=True)
class Flag:
    """How the command line shows a field; stands among the annotations of one, and may be left out.

    metavar: the value in `--help`; by default it follows from the type.  everyday: whether the option stands among the
    first ones.
    """

    metavar: str | None = None
    everyday: bool = False


class Options(BaseModel):
    """A group of options. Immutable; unknown names and values out of range raise `OptionError`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            option = ".".join(str(part) for part in first["loc"][:1]) or type(self).__name__
            raise OptionError(option, first["input"], first["msg"][:1].lower() + first["msg"][1:]) from None

    def to_dict(self) -> dict[str, JsonValue]:
        """The options as JSON types; `from_dict` restores them."""
        return self.model_dump(mode="json")

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> Self:
        """The inverse of `to_dict`; OptionError on an unknown or invalid field."""
        return cls(**values)


def one_of(names: Callable[[], Sequence[str]]) -> BeforeValidator:
    """Annotation of a field that takes one of some names, which may be registered after the class is made."""

    def known(value: Any) -> Any:
        if value not in (found := names()):
            *others, last = map(repr, found)
            raise PydanticCustomError("name", f"Input should be {', '.join(others)} or {last}")
        return value

    return BeforeValidator(known)
