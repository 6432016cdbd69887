"""How a model is run while it is pruned, and in how much memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

from .base import Flag, Options
from .sizes import Size

_SIZES = TypeAdapter(Size)

RunnerName = Literal["whole", "offloaded", "sharded", "streamed"]
"""Ways to run a model."""


def _by_device(value: Any) -> Any:
    """`0=20GiB,cpu=60GiB` as a mapping, which is taken too: GPUs by their numbers."""
    if value is None:
        return None
    pairs = list(value.items()) if isinstance(value, Mapping) else [part.split("=") for part in str(value).split(",")]
    try:
        named = [(_device(str(device).strip()), int(_SIZES.validate_python(size))) for device, size in pairs]
    except (ValueError, ValidationError):  # no pair, no device, no size
        named = []
    if not named or len(dict(named)) < len(named):
        raise PydanticCustomError("max_memory", "should be each device with a size, as in 0=20GiB,1=20GiB,cpu=60GiB")
    return dict(named)


def _device(name: str) -> int | str:
    number = name.removeprefix("cuda:")
    if name != "cpu" and not number.isdecimal():
        raise ValueError(name)
    return name if name == "cpu" else int(number)


MaxMemory = Annotated[dict[int | str, int], BeforeValidator(_by_device)]
"""Bytes by device: a GPU's number, or cpu."""


class RunnerOptions(Options):
    """How a model is run while it is pruned. It is no part of a recipe: whichever way, the same comes out."""

    runner: Literal["auto", RunnerName] = Field(
        default="auto",
        description="whole: on one device; offloaded: on several GPUs, the rest in CPU memory (needs accelerate); "
        "sharded: layer by layer from the memory of all processes of a launch; streamed: from the files; "
        "auto: the first of them that what is free allows",
    )
    max_memory: Annotated[MaxMemory | None, Flag("DEVICE=SIZE,…")] = Field(
        default=None,
        description="most memory for weights that are offloaded, as in 0=20GiB,1=20GiB,cpu=60GiB; what fits nowhere is "
        "read from the files; by default a share of what is free",
    )
