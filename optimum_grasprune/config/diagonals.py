"""How the diagonals of all maps are trained."""

from typing import Annotated

from pydantic import Field

from .base import Flag, Options

DIAGONAL_TOKENS = 320 * 512
"""What `diagonal_samples=None` comes to."""


class DiagonalOptions(Options):
    """How the diagonals of all maps are trained."""

    diagonal_samples: int | None = Field(
        default=None,
        ge=1,
        description="sequences, at most, that diagonals are trained on, those rehearsed among them; by default 163,840 "
        "tokens in all",
    )
    rehearsal: Annotated[float, Flag("SHARE")] = Field(
        default=0.4,
        ge=0,
        lt=1,
        description="share of these sequences that is English text of the package's own ('sampled'), of which nothing "
        "is learnt but what the dense model predicts, so that it is not unlearnt while the calibration corpus is "
        "learnt; none where 'sampled' is calibrated on",
    )
    diagonal_epochs: int = Field(default=1, ge=1, description="passes over them while diagonals are trained")
    diagonal_learning_rate: Annotated[float | None, Flag("RATE")] = Field(
        default=None,
        gt=0,
        description="AdamW's learning rate for the diagonals; by default it grows with the cut, 1e-2 for a half",
    )

    def diagonal_sequences(self, length: int) -> int:
        """Sequences of so many tokens, at most, that diagonals are trained on, those rehearsed among them."""
        return self.diagonal_samples or max(1, DIAGONAL_TOKENS // length)

    def rehearsed_sequences(self, calibrated: int, length: int) -> int:
        """Those that are rehearsed, where any are: a share of all of them, of which there may be fewer than asked for.

        calibrated: sequences of the calibration corpus that there are.  length: tokens in each.
        """
        asked = self.diagonal_sequences(length)
        own = min(calibrated, asked - round(self.rehearsal * asked))
        return round(own * self.rehearsal / (1 - self.rehearsal))
