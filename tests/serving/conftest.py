"""A finished benchmark on hand-made numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from optimum_grasprune.serving.bounds import Limits, Shape
from optimum_grasprune.serving.checkpoints import Checkpoint
from optimum_grasprune.serving.measure import assembled
from optimum_grasprune.serving.plan import Plan
from optimum_grasprune.serving.results import (
    Comparison,
    Measurements,
    Percentiles,
    Result,
    Run,
    RunOptions,
    Start,
)
from optimum_grasprune.serving.summary import compare
from optimum_grasprune.serving.workload import Lengths, Point

DENSE = Checkpoint("dense", "/m/dense", Shape(1200, 100, 100, False, 8, 8), "bfloat16", 512, 10, (128, 128), (2, 2), {})
HALF = Checkpoint("half", "/m/half", Shape(700, 100, 100, False, 4, 4), "bfloat16", 512, 10, (64, 100), (1, 1), {})
POINTS = [Point(Lengths(10, 20), 1, 16), Point(Lengths(10, 20), 4, 32)]
BOUNDS = Limits(prefill=2.0, decode=1.6)

OUTPUT = {"dense": (100.0, 50.0, 80.0), "half": (150.0, 100.0, 100.0)}
"""Output tokens per second of three repetitions: ratios 1.5, 2 and 1.25, their median 1.5."""


def run(checkpoint: str, repetition: int, point: Point) -> Run:
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
    percentiles = Percentiles(tuple(4.0 + n / 100 for n in range(99)), tuple(1.0 + n / 50 for n in range(99)))
    return Run(checkpoint, repetition, point.name, repetition, metrics, percentiles)


def start(checkpoint: str, repetition: int) -> Start:
    tokens = 1280 if checkpoint == "dense" else 2560
    return Start(
        checkpoint=checkpoint,
        repetition=repetition,
        seconds=10.0 + repetition,
        kv_cache_tokens=tokens,
        max_concurrency=tokens / 512,
        kv_cache_dtype="auto",
        dtype="bfloat16",
        load_seconds=0.5,
        weight_gib=None,
        engine_seconds=2.0,
    )


@pytest.fixture
def measured() -> Measurements:
    names, repetitions = ("dense", "half"), range(3)
    return Measurements(
        starts=tuple(start(name, repetition) for repetition in repetitions for name in names),
        runs=tuple(run(name, repetition, point) for repetition in repetitions for name in names for point in POINTS),
        commands=("vllm serve /m/dense", "vllm bench serve --x", "vllm serve /m/half"),
    )


@pytest.fixture
def result(measured: Measurements) -> Result:
    return result_of("serve", measured)


def result_of(mode: str, measured: Measurements) -> Result:
    # Weights of 4 bytes, by the flags alone.
    options = RunOptions(seed=0, kv_cache_bytes=20480, serve_flags=("--dtype", "float32"))
    plan = Plan("vllm", mode, [DENSE, HALF], POINTS, Path("logs"), options)
    return assembled(plan, measured, command="optimum-cli …")


@pytest.fixture
def overflow(measured: Measurements) -> Result:
    return result_of("long-context", measured)


@pytest.fixture
def comparisons(measured: Measurements) -> dict[str, Comparison]:
    """Of the first point, by metric."""
    return {row.metric: row for row in compare(measured.runs, POINTS[0].name, "half", BOUNDS)}
