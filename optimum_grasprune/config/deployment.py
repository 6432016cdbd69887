"""What a checkpoint is to be served on."""

from typing import Annotated, Literal

from pydantic import Field

from .base import Flag, Options
from .sizes import Size


class DeploymentOptions(Options):
    """What a checkpoint is to be served on. Pruning needs none of it, so it is no part of `GRASPConfig`."""

    gpu_memory: Annotated[Size, Flag("SIZE")] = Field(
        description="memory of one GPU, as in 24GiB: says how many sequences fit, dense and pruned"
    )
    context: int = Field(
        default=4096, ge=1, description="tokens in a sequence, prompt and answer; at most what the model reads"
    )
    gpu_memory_utilization: Annotated[float, Flag("SHARE")] = Field(
        default=0.9, gt=0, le=1, description="share of the GPU memory that the engine may use, as given to vLLM"
    )
    tensor_parallel_size: int = Field(default=1, ge=1, description="GPUs that the model is split among")
    kv_cache_dtype: Literal["auto", "float16", "bfloat16", "fp8", "fp8_e4m3", "fp8_e5m2"] = Field(
        default="auto", description="data type of the KV cache, as given to vLLM; auto is the model's"
    )
    overhead: Annotated[Size | None, Flag("SIZE")] = Field(
        default=None,
        description="memory for activations and runtime, per GPU; by default an allowance for vLLM's defaults",
    )
