"""Which needles are hidden in which haystacks."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from .base import Flag, Options


def _separate(value: Any) -> Any:
    """Numbers with commas between them, as the command line has them."""
    return tuple(value.split(",")) if isinstance(value, str) else (value,) if isinstance(value, int) else value


class NeedleOptions(Options):
    """Numbers that are hidden in a long text, and asked for after it."""

    needles: Annotated[str | None, Flag("PATH|NAME[SLICE]")] = Field(
        default=None, description="hide numbers in this text, as in 'novels.txt[:90%]', and ask for each after it"
    )
    needle_lengths: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...] | None, BeforeValidator(_separate), Flag("N[,N…]")
    ] = Field(
        default=None,
        min_length=1,
        description="tokens in all, question and answer among them; by default 1024, 2048, … up to what all models "
        "read",
    )
    needle_depths: Annotated[
        tuple[Annotated[float, Field(ge=0, le=100)], ...] | None, BeforeValidator(_separate), Flag("PERCENT[,PERCENT…]")
    ] = Field(
        default=None,
        min_length=1,
        max_length=40,
        description="how deep in the text the numbers lie, one at each: 0 is its beginning, 100 its end; by default "
        "0,25,50,75,100",
    )
    needle_texts: int = Field(default=4, ge=1, description="texts of each length, each with its own numbers")
    seed: int = Field(default=0, ge=0, description="seed of the places in the text, and of what is hidden there")
