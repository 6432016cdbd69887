"""What is measured, by name: labels, units, and which way is better. An engine may add quantities of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Phase = Literal["prefill", "decode", "request"]


@dataclass(frozen=True)
class Quantity:
    """A measured quantity. higher: whether more is better.  phase: whose limit bounds it, if one does."""

    label: str
    unit: str
    higher: bool
    phase: Phase | None = None

    @property
    def heading(self) -> str:
        """Label and unit."""
        return f"{self.label}, {self.unit}" if self.unit else self.label


_LATENCIES: tuple[tuple[str, str, Phase], ...] = (
    ("ttft", "TTFT", "prefill"),
    ("tpot", "TPOT", "decode"),
    ("itl", "ITL", "decode"),
    ("e2el", "whole request", "request"),
)
COMMON: dict[str, Quantity] = {
    "request_throughput": Quantity("requests", "1/s", True, "request"),
    "output_throughput": Quantity("output tokens", "1/s", True, "request"),
    "total_token_throughput": Quantity("prompt and output tokens", "1/s", True, "request"),
    "prefill_throughput": Quantity("prompt tokens in prefill", "1/s", True, "prefill"),
    "decode_throughput": Quantity("tokens in decode", "1/s", True, "decode"),
    "prefill_ms": Quantity("prefill", "ms", False, "prefill"),
    "decode_step_ms": Quantity("decode step", "ms", False, "decode"),
    "mean_batch_ms": Quantity("one batch, mean", "ms", False, "request"),
    "p50_batch_ms": Quantity("one batch, p50", "ms", False, "request"),
    # A 99th percentile is that of a request that waited for others: no work of its own bounds it.
    **{
        f"{kind}_{name}_ms": Quantity(f"{label}, {kind}", "ms", False, None if kind == "p99" else phase)
        for name, label, phase in _LATENCIES
        for kind in ("mean", "p50", "p99")
    },
    "engine_prefill_ms": Quantity("prefill in the engine, mean", "ms", False, "prefill"),
    "engine_step_ms": Quantity("decode step in the engine, mean", "ms", False, "decode"),
    "mean_queue_ms": Quantity("waiting in the engine, mean", "ms", False),
    "preemptions": Quantity("preemptions", "", False),
}
"""Quantities that any engine may give, in the order of the tables."""

OVERFLOW = ("request_throughput", "preemptions", "mean_queue_ms")
"""What the saved heads buy where the dense KV cache is full."""
