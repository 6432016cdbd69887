"""The search of per-layer widths on the true loss."""

from typing import Annotated

from pydantic import Field

from .base import Flag, Options


class SearchOptions(Options):
    """The search of per-layer widths on the true loss."""

    search_trials: int = Field(default=0, ge=0, description="widths that are tried; 0 leaves out the search")
    search_samples: int = Field(default=32, ge=1, description="calibration sequences that each of them is measured on")
    search_seconds: Annotated[float | None, Flag("SECONDS")] = Field(
        default=None, gt=0, description="time limit of the search; the result then depends on the machine's speed"
    )
