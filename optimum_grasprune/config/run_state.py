"""Whether a run goes on from where an earlier one was stopped."""

from typing import Literal

from pydantic import Field

from .base import Options


class StateOptions(Options):
    """Whether a run goes on from where an earlier one was stopped. It is no part of a recipe."""

    resume: Literal["yes", "no"] = Field(
        default="yes",
        description="whether the same command goes on where it was stopped, from the state that it keeps in or beside "
        "OUTPUT every two minutes; no starts anew",
    )
