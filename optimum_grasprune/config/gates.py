"""How the gate scores are trained."""

from typing import Annotated, Literal

from pydantic import Field

from .base import Flag, Options


class GateOptions(Options):
    """How the gate scores are trained."""

    epochs: int = Field(default=1, ge=1, description="passes over the calibration sequences while gates are trained")
    batch_size: int = Field(default=1, ge=1, description="sequences in one training step")
    learning_rate: Annotated[float | None, Flag("RATE")] = Field(
        default=None,
        gt=0,
        description="AdamW's learning rate for the gate scores; by default it grows with the cut, 2e-2 for a half, "
        "and for ddp with fewer steps",
    )
    schedule: Literal["cosine", "constant"] = Field(
        default="cosine",
        description="course of the learning rates of gates, scales and diagonals; cosine falls to zero",
    )
    kl_weight: Annotated[float | None, Flag("SHARE")] = Field(
        default=None,
        ge=0,
        le=1,
        description="share of the loss, wherever something is trained, that is the divergence from what the dense "
        "model predicts; by default 0.5 for diagonals and recovery, 0.25 for diagonals beside text that is rehearsed, "
        "0 for scales, 2/3 for ddp, and for gates 0 for a cut of a fifth to 0.25 for a half",
    )
    gate_kl_weight: Annotated[float | None, Flag("SHARE")] = Field(
        default=None, ge=0, le=1, description="the same for gates alone, whatever it is elsewhere"
    )
    multipliers: Literal["none", "joint"] = Field(
        default="none",
        description="whether an unbounded multiplier per unit is trained jointly with the gates, and folded",
    )
    multiplier_learning_rate: Annotated[float, Flag("RATE")] = Field(
        default=1e-2, gt=0, description="AdamW's learning rate for these multipliers"
    )
    temperature: Annotated[float, Flag("TAU")] = Field(default=1.5, gt=0, description="τ in p = sigmoid(s / τ)")
    start: Literal["zero", "fisher"] = Field(
        default="fisher", description="gate scores at the start: all equal, or by Fisher information per parameter"
    )
    start_rounds: int = Field(
        default=1,
        ge=1,
        description="rounds of Fisher information: each after the first measures the model that the one before leaves, "
        "while the budget shrinks; 1 measures the dense model only",
    )
    budget_warmup: Annotated[float, Flag("SHARE")] = Field(
        default=0.5, ge=0, lt=1, description="share of the training over which the budget shrinks from the whole model"
    )
    snapshots: int = Field(
        default=4, ge=1, description="moments of the training, the end among them, whose masks are candidates"
    )
