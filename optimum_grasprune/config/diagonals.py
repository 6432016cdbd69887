"""How the diagonals of all maps are trained."""

from typing import Annotated

from pydantic import Field

from .base import Flag, Options

DIAGONAL_TOKENS = 512 * 512
"""What `diagonal_samples=None` comes to at most, whatever is calibrated on."""


def with_share(count: int, share: float) -> tuple[int, int]:
    """So many sequences in two kinds: of the calibration corpus, at least one, and a share that is rehearsed."""
    rehearsed = min(round(share * count), count - 1)
    return count - rehearsed, rehearsed


class DiagonalOptions(Options):
    """How the diagonals of all maps are trained."""

    diagonal_samples: int | None = Field(
        default=None,
        ge=1,
        description="sequences that diagonals are trained on, those rehearsed among them: the calibration sequences, "
        "then more of the same corpus; by default twice as many as are calibrated on, at most 262,144 tokens",
    )
    rehearsal: Annotated[float, Flag("SHARE")] = Field(
        default=0.25,
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

    def diagonal_sequences(self, calibrated: int, length: int) -> int:
        """Sequences that diagonals are trained on, those rehearsed among them.

        calibrated: calibration sequences.  length: tokens in each.
        """
        return self.diagonal_samples or min(2 * calibrated, max(1, DIAGONAL_TOKENS // length))

    def rehearsed_sequences(self, calibrated: int, length: int) -> int:
        """Those of them that are rehearsed, where any are; at least one is not."""
        return with_share(self.diagonal_sequences(calibrated, length), self.rehearsal)[1]
