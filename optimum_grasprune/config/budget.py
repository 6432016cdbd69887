"""How much may stay."""

from typing import Annotated, Literal

from pydantic import Field

from .base import Flag, Options


class BudgetOptions(Options):
    """How much may stay."""

    keep_ratio: Annotated[float, Flag("RATIO", everyday=True)] = Field(
        default=0.5, gt=0, le=1, description="share of the budgeted parameters that stays (the paper's ρ)"
    )
    budget: Literal["prunable", "total"] = Field(
        default="prunable",
        description="what the keep ratio is a share of: the prunable parameters (the paper's ρ: FFN channels and KV "
        "head groups) or all parameters of the model, embeddings, head and norms included",
    )
    kv_keep_ratio: Annotated[float | None, Flag("RATIO", everyday=True)] = Field(
        default=None, gt=0, le=1, description="a second cap: share of the KV cache per token that may stay"
    )
    min_ffn_channels: int = Field(
        default=1, ge=0, description="FFN channels that every layer keeps at least; with 0 a layer may lose its FFN"
    )
    min_kv_groups: int = Field(
        default=1,
        ge=0,
        description="KV head groups that every layer keeps at least; with 0 a layer may lose its attention",
    )
    ffn_multiple_of: int = Field(default=1, ge=1, description="every layer's FFN width is a multiple of this")
    kv_multiple_of: int = Field(default=1, ge=1, description="every layer's number of KV heads is a multiple of this")
    tensor_parallel_size: int = Field(
        default=1, ge=1, description="tensor-parallel size to serve with: every layer's widths are multiples of it"
    )
