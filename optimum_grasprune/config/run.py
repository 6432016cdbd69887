"""Where and how precisely it all runs."""

from typing import Annotated, Literal

from pydantic import Field

from .base import Flag, Options


class RunOptions(Options):
    """Where and how precisely it all runs."""

    seed: Annotated[int, Flag(everyday=True)] = Field(
        default=0,
        ge=0,
        lt=2**63,
        description="seed of every random choice; on one machine's CPU the same seed gives the same checkpoint",
    )
    dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16"], Flag(everyday=True)] = Field(
        default="auto",
        description="precision that the model is loaded, calibrated and saved in; auto is the checkpoint's own",
    )
    device: Annotated[str, Flag("DEVICE", everyday=True)] = Field(
        default="auto", description="torch device, as in cpu or cuda:0; auto takes the first GPU, else the CPU"
    )
    gradient_checkpointing: bool = Field(
        default=False, description="recompute activations to save memory, about a third slower"
    )
    deterministic: bool = Field(
        default=False,
        description="only algorithms of torch's that give the same bits every time, on one GPU too: slower and larger "
        "there, no change on a CPU",
    )
