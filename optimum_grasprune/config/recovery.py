"""Whether the pruned model's weights are trained, and how."""

from typing import Annotated

from pydantic import Field

from ..registry import RECOVERIES
from .base import Flag, Options, one_of
from .diagonals import with_share


class RecoveryOptions(Options):
    """Whether the pruned model's weights are trained, and how."""

    recover: Annotated[
        str, one_of(lambda: ("none", *RECOVERIES)), Flag("|".join(("none", *RECOVERIES)), everyday=True)
    ] = Field(
        default="none",
        description="train the weights of the pruned model at the end: lora trains low-rank updates of all maps in "
        "the layers and merges them (needs peft), distill trains all weights of the layers",
    )
    recover_tokens: int = Field(
        default=2**17, ge=1, description="tokens that weights are trained on, those rehearsed among them"
    )
    recover_epochs: int = Field(default=1, ge=1, description="passes over them while weights are trained")
    recover_batch_size: int | None = Field(
        default=None, ge=1, description="sequences in one step while weights are trained; --batch-size by default"
    )
    recover_rehearsal: Annotated[float, Flag("SHARE")] = Field(
        default=0.25,
        ge=0,
        lt=1,
        description="share of these tokens that is English text of the package's own ('sampled'), of which nothing is "
        "learnt but what the dense model predicts; none where 'sampled' is calibrated on",
    )
    recover_learning_rate: Annotated[float | None, Flag("RATE")] = Field(
        default=None,
        gt=0,
        description="AdamW's learning rate for the weights; it falls to zero on a cosine; by default 2e-3 for lora, "
        "3e-4 for distill",
    )
    recover_interpolation: Annotated[float, Flag("SHARE")] = Field(
        default=0.8,
        gt=0,
        le=1,
        description="share of what the training changed in the weights that is kept: less than 1 gives up some of the "
        "text that was trained on for text of other kinds",
    )
    recover_rank: int = Field(default=16, ge=1, description="rank of LoRA's updates")
    recover_watch: Annotated[str | None, Flag("PATH|NAME")] = Field(
        default=None,
        description="text of another kind than the calibration corpus, also as PATH[SLICE], that the training must not "
        "make worse; by default 'sampled' (its end, where the rest is rehearsed), or 'builtin' where that is "
        "calibrated on, or the other split of 'builtin' where both are",
    )

    def recovery_sequences(self, length: int) -> tuple[int, int]:
        """Sequences of so many tokens that weights are trained on: of the calibration corpus, and those rehearsed."""
        return with_share(max(1, self.recover_tokens // length), self.recover_rehearsal)
