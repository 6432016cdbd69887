"""Whether the pruned model's weights are trained, and how."""

from typing import Annotated

from pydantic import Field

from ..registry import RECOVERIES
from .base import Flag, Options, one_of


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
        default=2**17, ge=1, description="tokens of the calibration corpus that weights are trained on, each once"
    )
    recover_learning_rate: Annotated[float | None, Flag("RATE")] = Field(
        default=None,
        gt=0,
        description="AdamW's learning rate for the weights; it falls to zero on a cosine; by default 2e-3 for lora, "
        "3e-4 for distill",
    )
    recover_rank: int = Field(default=16, ge=1, description="rank of LoRA's updates")
    recover_watch: Annotated[str | None, Flag("PATH|NAME")] = Field(
        default=None,
        description="text of another kind than the calibration corpus, also as PATH[SLICE], that the training must not "
        "make worse; by default 'sampled' (its end, where the rest is rehearsed), or 'builtin' where that is "
        "calibrated on, or the other split of 'builtin' where both are",
    )
