"""A finished benchmark on hand-made numbers."""

from __future__ import annotations

from typing import Any

import pytest

from optimum_grasprune.benchmark.bounds import Limits, Shape
from optimum_grasprune.benchmark.checkpoints import Checkpoint
from optimum_grasprune.benchmark.results import assembled
from optimum_grasprune.benchmark.summary import compare
from optimum_grasprune.benchmark.workload import Lengths, Point

DENSE = Checkpoint("dense", "/m/dense", Shape(1200, 100, 100, False, 8, 8), "bfloat16", 512, 10, (128, 128), (2, 2), {})
HALF = Checkpoint("half", "/m/half", Shape(700, 100, 100, False, 4, 4), "bfloat16", 512, 10, (64, 100), (1, 1), {})
POINTS = [Point(Lengths(10, 20), 1, 16), Point(Lengths(10, 20), 4, 32)]
BOUNDS = Limits(prefill=2.0, decode=1.6)

OUTPUT = {"dense": (100.0, 50.0, 80.0), "half": (150.0, 100.0, 100.0)}
"""Output tokens per second of three repetitions: ratios 1.5, 2 and 1.25, their median 1.5."""


def run(checkpoint: str, repetition: int, point: Point) -> dict[str, Any]:
    output = OUTPUT[checkpoint][repetition] * point.concurrency
    metrics = {
        "output_throughput": output,
        "request_throughput": output / 20,
        "p50_ttft_ms": 8.0 if checkpoint == "dense" else 4.0,
        "p99_ttft_ms": 10.0,
        "preemptions": 0.0,
        "mean_queue_ms": 0.0,
        "prompt_tokens": 10.0,
        "output_tokens": 20.0,
        "in_bursts": 0.0,
    }
    percentiles = {"ttft": [4.0 + n / 100 for n in range(99)], "itl": [1.0 + n / 50 for n in range(99)]}
    names = {"checkpoint": checkpoint, "repetition": repetition, "point": point.name, "seed": repetition}
    return {**names, "metrics": metrics, "percentiles": percentiles}


def start(checkpoint: str, repetition: int) -> dict[str, Any]:
    tokens = 1280 if checkpoint == "dense" else 2560
    return {
        "checkpoint": checkpoint,
        "repetition": repetition,
        "seconds": 10.0 + repetition,
        "kv_cache_tokens": tokens,
        "max_concurrency": tokens / 512,
        "kv_cache_dtype": "auto",
        "dtype": "bfloat16",
        "load_seconds": 0.5,
        "weight_gib": None,
        "engine_seconds": 2.0,
    }


@pytest.fixture
def measured() -> dict[str, Any]:
    names, repetitions = ("dense", "half"), range(3)
    return {
        "starts": [start(name, repetition) for repetition in repetitions for name in names],
        "runs": [run(name, repetition, point) for repetition in repetitions for name in names for point in POINTS],
        "commands": ["vllm serve /m/dense", "vllm bench serve --x", "vllm serve /m/half"],
    }


@pytest.fixture
def result(measured: dict[str, Any]) -> dict[str, Any]:
    return result_of("serve", measured)


def result_of(mode: str, measured: dict[str, Any]) -> dict[str, Any]:
    options = {"repetitions": 3, "together": False, "seed": 0, "kv_cache_bytes": 20480, "serve_flags": []}
    return assembled(mode, measured, [DENSE, HALF], POINTS, options, command="optimum-cli …", element_sizes=(4, 4))


@pytest.fixture
def overflow(measured: dict[str, Any]) -> dict[str, Any]:
    return result_of("long-context", measured)


@pytest.fixture
def comparisons(measured: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Of the first point, by metric."""
    return {row["metric"]: row for row in compare(measured["runs"], POINTS[0].name, "half", BOUNDS)}
