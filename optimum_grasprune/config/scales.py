"""How the scales of the kept units are calibrated."""

from typing import Annotated

from pydantic import Field

from .base import Flag, Options


class ScaleOptions(Options):
    """How the scales of the kept units are calibrated."""

    scale_samples: int = Field(
        default=512, ge=1, description="calibration sequences, at most, that scales are trained on"
    )
    scale_epochs: int = Field(default=1, ge=1, description="passes over them while scales are trained")
    scale_learning_rate: Annotated[float, Flag("RATE")] = Field(
        default=1e-2, gt=0, description="AdamW's learning rate for the scales"
    )
