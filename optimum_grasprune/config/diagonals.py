"""How the diagonals of all maps are trained."""

from typing import Annotated

from pydantic import Field

from .base import Flag, Options


class DiagonalOptions(Options):
    """How the diagonals of all maps are trained."""

    diagonal_samples: int = Field(
        default=192, ge=1, description="calibration sequences, at most, that diagonals are trained on"
    )
    diagonal_epochs: int = Field(default=1, ge=1, description="passes over them while diagonals are trained")
    diagonal_learning_rate: Annotated[float, Flag("RATE")] = Field(
        default=1e-2, gt=0, description="AdamW's learning rate for the diagonals"
    )
