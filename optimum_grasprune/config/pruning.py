"""What is cut, and what makes up for it."""

from typing import Annotated, Literal

from pydantic import Field

from ..registry import METHODS, chain_names
from .base import Flag, Options, one_of


class PruningOptions(Options):
    """What is cut, and what makes up for it."""

    method: Annotated[str, Flag(everyday=True)] = Field(
        default="grasprune",
        description=f"how the units to keep are chosen: {', '.join(METHODS.names())}",
    )
    pattern: Literal["units", "unstructured", "2:4", "4:8"] = Field(
        default="units",
        description="what is cut: whole units, which makes a smaller dense model, or single weights, anywhere or so "
        "that 2 of 4 (4 of 8) neighbours stay, which makes a model of the same size with zeros in it",
    )
    allocation: Literal["auto", "uniform", "global"] = Field(
        default="auto",
        description="whether every layer keeps the same share or units compete over the whole model; "
        "auto is the method's own",
    )
    compensation: Annotated[str, one_of(lambda: ("auto", *chain_names())), Flag(everyday=True)] = Field(
        default="auto",
        description="what makes up for the units that were cut: trained scales of units (scales), trained diagonals on "
        "all maps of the layers (diagonals), least squares on the output projections (least_squares), these and then "
        "scales (both) or diagonals (refit), the mean of what is missing (bias), row energies (energy), or none; auto "
        "is the method's own",
    )
    statistic_samples: int | None = Field(
        default=None,
        ge=1,
        description="calibration sequences, at most, that statistics and least squares look at; by default the "
        "method's own number, 64 for grasprune and 128 elsewhere",
    )
