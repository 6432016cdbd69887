"""What vLLM can be measured in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch

from ...quantities import OVERFLOW
from ...results import RunOptions
from ..base import ElementSizes, Engine, Mode
from ..registry import register
from .launch import kv_bytes_by_default, served_sizes
from .offline import OfflineSession
from .serve import LongContextSession, ServeSession


@register("vllm")
class VllmEngine(Engine):
    """vLLM, by its own commands."""

    requires: ClassVar[Mapping[str, str]] = {
        "vllm": 'vLLM is not installed: pip install "optimum-grasprune[vllm]", '
        "or give --mode generate, which needs none"
    }
    modes: ClassVar[Mapping[str, Mode]] = {
        "serve": Mode(
            ServeSession,
            runs="`vllm serve`, asked by `vllm bench serve`",
            headline=("output_throughput", "p50_ttft_ms", "p50_tpot_ms", "engine_step_ms"),
            without=("device",),
        ),
        "long-context": Mode(
            LongContextSession,
            runs="`vllm serve`, asked by `vllm bench serve` for more than the dense KV cache holds",
            headline=OVERFLOW,
            without=("device", "prompts", "output_len"),
            overflows=True,
        ),
        "offline": Mode(
            OfflineSession,
            runs="`vllm bench throughput` and `vllm bench latency`",
            headline=("output_throughput", "mean_batch_ms"),
            without=("device", "together", "port", "start_timeout", "prompts", "output_len"),
            at_once="sequences in a batch",
            inner="checkpoints",
        ),
    }

    @classmethod
    def element_sizes(cls, options: RunOptions, stored: str) -> ElementSizes:
        """By the flags; without any, vLLM serves fp32 checkpoints in half precision."""
        return served_sizes(options.serve_flags, stored)

    @classmethod
    def default_cache_bytes(cls) -> int | None:
        """On a GPU what vLLM finds; on a CPU, where it would take nearly all memory, a fixed size."""
        return kv_bytes_by_default(on_cpu=not torch.accelerator.is_available())
