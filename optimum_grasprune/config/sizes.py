"""Sizes with a unit."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ByteSize, ValidationError, ValidatorFunctionWrapHandler, WrapValidator
from pydantic_core import PydanticCustomError


def _with_unit(value: Any, parse: ValidatorFunctionWrapHandler) -> ByteSize:
    error = PydanticCustomError("size", "should be a size like 24GiB, 80GB or 512MiB")
    try:
        size = parse(value)
    except ValidationError:
        raise error from None
    if size < 2**20:  # pydantic takes a number without a unit for bytes; nobody means 24 bytes
        raise error
    return size


Size = Annotated[ByteSize, WrapValidator(_with_unit)]
"""Bytes, written as in 24GiB or 80GB."""
