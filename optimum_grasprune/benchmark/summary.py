"""Comparing what was measured: ratios within each repetition, their median and spread. Pure functions of JSON types."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from .bounds import Limits
from .checkpoints import DENSE
from .engine import GIB

Phase = Literal["prefill", "decode", "request"]


@dataclass(frozen=True)
class Metric:
    """A measured quantity. higher: whether more is better.  phase: whose limit bounds it, if one does."""

    label: str
    unit: str
    higher: bool
    phase: Phase | None = None


_LATENCIES: tuple[tuple[str, str, Phase], ...] = (
    ("ttft", "TTFT", "prefill"),
    ("tpot", "TPOT", "decode"),
    ("itl", "ITL", "decode"),
    ("e2el", "whole request", "request"),
)
METRICS: dict[str, Metric] = {
    "request_throughput": Metric("requests", "1/s", True, "request"),
    "output_throughput": Metric("output tokens", "1/s", True, "request"),
    "total_token_throughput": Metric("prompt and output tokens", "1/s", True, "request"),
    "prefill_throughput": Metric("prompt tokens in prefill", "1/s", True, "prefill"),
    "decode_throughput": Metric("tokens in decode", "1/s", True, "decode"),
    "prefill_ms": Metric("prefill", "ms", False, "prefill"),
    "decode_step_ms": Metric("decode step", "ms", False, "decode"),
    "mean_batch_ms": Metric("one batch, mean", "ms", False, "request"),
    "p50_batch_ms": Metric("one batch, p50", "ms", False, "request"),
    # A 99th percentile is that of a request that waited for others: no work of its own bounds it.
    **{
        f"{kind}_{name}_ms": Metric(f"{label}, {kind}", "ms", False, None if kind == "p99" else phase)
        for name, label, phase in _LATENCIES
        for kind in ("mean", "p50", "p99")
    },
    "engine_prefill_ms": Metric("prefill in the engine, mean", "ms", False, "prefill"),
    "engine_step_ms": Metric("decode step in the engine, mean", "ms", False, "decode"),
    "mean_queue_ms": Metric("waiting in the engine, mean", "ms", False),
    "preemptions": Metric("preemptions", "", False),
}
"""Every quantity that any mode measures, in the order of the tables."""


@dataclass(frozen=True)
class Spread:
    """Median, smallest and largest of the repetitions."""

    median: float
    low: float
    high: float


def spread(values: Iterable[float]) -> Spread:
    """The spread of one value or more."""
    found = list(values)
    return Spread(statistics.median(found), min(found), max(found))


def values_of(runs: Iterable[Mapping[str, Any]], checkpoint: str, point: str, metric: str) -> dict[int, float]:
    """What a checkpoint gave at a point, by repetition."""
    return {
        run["repetition"]: run["metrics"][metric]
        for run in runs
        if run["checkpoint"] == checkpoint and run["point"] == point and metric in run["metrics"]
    }


def paired_ratios(dense: Mapping[int, float], pruned: Mapping[int, float]) -> list[float]:
    """Pruned over dense in each repetition that both have, where the dense value is not 0."""
    return [pruned[key] / dense[key] for key in sorted(dense.keys() & pruned.keys()) if dense[key]]


def compare(
    runs: Sequence[Mapping[str, Any]], point: str, checkpoint: str, bounds: Limits | None
) -> list[dict[str, Any]]:
    """A checkpoint beside the dense one at one point: a JSON object for every quantity that both have.

    `limit` is what the ratio cannot pass: at most that for a throughput, at least that for a time.
    """
    rows: list[dict[str, Any]] = []
    for name, metric in METRICS.items():
        dense, pruned = (values_of(runs, key, point, name) for key in (DENSE, checkpoint))
        if not dense or not pruned:
            continue
        ratios = paired_ratios(dense, pruned)
        rows.append(
            {
                "point": point,
                "checkpoint": checkpoint,
                "metric": name,
                "dense": asdict(spread(dense.values())),
                "pruned": asdict(spread(pruned.values())),
                "ratio": asdict(spread(ratios)) if ratios else None,
                "limit": limit_of(metric, bounds),
            }
        )
    return rows


def bursty(runs: Iterable[Mapping[str, Any]]) -> list[str]:
    """Points at which some checkpoint's client got most tokens together with the one before."""
    return list(dict.fromkeys(run["point"] for run in runs if run["metrics"].get("in_bursts", 0.0) > 0.5))


def limit_of(metric: Metric, bounds: Limits | None) -> float | None:
    """The limit of a ratio pruned ÷ dense: the speed-up's for a throughput, its inverse for a time."""
    if bounds is None or metric.phase is None:
        return None
    bound: float = getattr(bounds, metric.phase)
    return bound if metric.higher else 1 / bound


def memory(
    described: Sequence[Mapping[str, Any]], starts: Sequence[Mapping[str, Any]], kv_bytes: int | None
) -> list[dict[str, Any]]:
    """What each checkpoint takes and what its KV cache holds, the dense one's first, as JSON objects.

    described: of the checkpoints.  starts: of their servers.  kv_bytes: memory of the KV cache where it was fixed.
    `kv_cache_tokens` is what the server says. `kv_tokens_per_gib` follows from the shapes: the view at fixed KV memory.
    `kv_tokens_same_total` gives the cache what the weights of the dense model take more: the view at fixed memory in
    all, which the server itself has where the KV memory is not fixed.
    """
    dense = described[0]
    rows: list[dict[str, Any]] = []
    for item in described:
        own = [start for start in starts if start["checkpoint"] == item["name"]]
        per_token = item["kv_bytes_per_token"]
        freed = dense["weight_bytes"] - item["weight_bytes"]
        rows.append(
            {
                "checkpoint": item["name"],
                "kv_cache_tokens": _median(own, "kv_cache_tokens"),
                "max_concurrency": _median(own, "max_concurrency"),
                "kv_tokens_per_gib": GIB // per_token,
                "kv_tokens_same_total": None if kv_bytes is None else (kv_bytes + freed) // per_token,
                "kv_ratio_computed": dense["kv_bytes_per_token"] / per_token,
                **{name: _spread(own, name) for name in ("load_seconds", "seconds", "engine_seconds", "weight_gib")},
            }
        )
    for row in rows:
        counts = (row["kv_cache_tokens"], rows[0]["kv_cache_tokens"])
        row["kv_ratio"] = counts[0] / counts[1] if all(counts) else None
    return rows


def _values(starts: Iterable[Mapping[str, Any]], name: str) -> list[float]:
    return [start[name] for start in starts if start.get(name) is not None]


def _median(starts: Iterable[Mapping[str, Any]], name: str) -> float | None:
    values = _values(starts, name)
    return statistics.median(values) if values else None


def _spread(starts: Iterable[Mapping[str, Any]], name: str) -> dict[str, float] | None:
    values = _values(starts, name)
    return asdict(spread(values)) if values else None
