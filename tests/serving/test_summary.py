from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimum_grasprune.serving.engines.vllm.client import incomplete, percentiles_of, quantities_of
from optimum_grasprune.serving.results import CheckpointFacts, Comparison, Run, Spread, Start
from optimum_grasprune.serving.summary import bursty, memory, paired_ratios, spread
from optimum_grasprune.serving.workload import Lengths, Point

CLIENT = {
    "completed": 2,
    "total_input_tokens": 20,
    "total_output_tokens": 6,
    "request_throughput": 1.0,
    "output_throughput": 3.0,
    "total_token_throughput": 13.0,
    "ttfts": [0.1, 0.2],
    "itls": [[0.01, 0.00001], [0.03, 0.04]],
    **{f"{kind}_{name}_ms": 5.0 for name in ("ttft", "tpot", "itl", "e2el") for kind in ("mean", "p50", "p99")},
}
GROWN = {
    "vllm:num_preemptions_total": 3.0,
    "vllm:request_queue_time_seconds_sum": 0.5,
    "vllm:request_prefill_time_seconds_sum": 0.4,
    "vllm:request_decode_time_seconds_sum": 0.8,
    "vllm:request_decode_time_seconds_count": 2.0,
    "vllm:generation_tokens_total": 6.0,
}


def test_ratios_are_taken_within_a_repetition() -> None:
    assert paired_ratios({0: 100, 1: 50, 2: 0, 3: 1}, {0: 150, 1: 100, 2: 7}) == [1.5, 2.0]


@given(st.lists(st.floats(0.1, 10), min_size=1), st.lists(st.floats(0.5, 2), min_size=1))
def test_drift_that_meets_both_cancels(drift: list[float], speed: list[float]) -> None:
    pairs = dict(enumerate(zip(drift, speed, strict=False)))
    dense = {key: scale for key, (scale, _) in pairs.items()}
    pruned = {key: scale * ratio for key, (scale, ratio) in pairs.items()}
    assert paired_ratios(dense, pruned) == pytest.approx([ratio for _, ratio in pairs.values()])


def test_spread() -> None:
    found = spread([3.0, 1.0, 2.0])
    assert (found.median, found.low, found.high) == (2.0, 1.0, 3.0)


def test_compare(comparisons: dict[str, Comparison]) -> None:
    tokens = comparisons["output_throughput"]
    assert tokens.dense == Spread(median=80.0, low=50.0, high=100.0)
    assert tokens.ratio == Spread(median=1.5, low=1.25, high=2.0)
    assert tokens.limit == 2.0  # the larger of prefill's and decode's
    first_token = comparisons["p50_ttft_ms"]
    assert first_token.ratio is not None and first_token.ratio.median == 0.5
    assert first_token.limit == 0.5  # a time: the inverse
    assert comparisons["p99_ttft_ms"].limit is None
    assert comparisons["preemptions"].ratio is None  # the dense model had none
    assert "prompt_tokens" not in comparisons


def facts(name: str, kv_bytes_per_token: int, weight_bytes: int) -> CheckpointFacts:
    return CheckpointFacts(name, f"/m/{name}", 0, weight_bytes, kv_bytes_per_token, (), (), {}, {})


def test_memory_by_hand() -> None:
    described = [facts("dense", 16, 2400), facts("half", 8, 1400)]
    starts = [
        Start("dense", 0, kv_cache_tokens=1280, max_concurrency=2.5, seconds=10.0),
        Start("half", 0, kv_cache_tokens=2560, max_concurrency=5.0, seconds=9.0),
        Start("half", 1, kv_cache_tokens=2560, max_concurrency=5.0, seconds=8.0),
    ]
    dense, half = memory(described, starts, 20480)
    assert (dense.kv_tokens_same_total, half.kv_tokens_same_total) == (1280, (20480 + 1000) // 8)
    assert (dense.kv_tokens_per_gib, half.kv_tokens_per_gib) == (2**30 // 16, 2**30 // 8)
    assert (half.kv_ratio, half.kv_ratio_computed) == (2.0, 2.0)
    assert half.seconds == Spread(median=8.5, low=8.0, high=9.0)
    assert half.load_seconds is None


def test_memory_without_servers() -> None:
    (row,) = memory([facts("dense", 16, 2400)], [], None)
    assert row.kv_ratio is None and row.kv_tokens_same_total is None and row.kv_cache_tokens is None


def test_measured_by_hand() -> None:
    found = quantities_of(CLIENT, GROWN)
    assert (found["prompt_tokens"], found["output_tokens"], found["preemptions"]) == (10, 3, 3)
    assert found["engine_prefill_ms"] == pytest.approx(200)
    assert found["engine_step_ms"] == pytest.approx(200)  # 0.8 s for the 4 tokens that were not first
    assert found["mean_queue_ms"] == pytest.approx(250)
    assert found["in_bursts"] == 0.25


def test_percentiles() -> None:
    found = percentiles_of(CLIENT)
    assert len(found.ttft) == len(found.itl) == 99
    assert found.ttft[49] == pytest.approx(150)
    assert found.itl[49] == pytest.approx(1000 * statistics.median([0.01, 0.00001, 0.03, 0.04]))


def test_incomplete() -> None:
    point = Point(Lengths(8, 4), 1, requests=2)
    assert incomplete({"completed": 2, "total_output_tokens": 8}, point) == ""
    failed = {"completed": 0, "errors": ["Traceback …\nConnectionError: refused\n", ""]}
    assert incomplete(failed, point) == "0 of 2 requests were completed (ConnectionError: refused)"
    assert incomplete({"completed": 1, "errors": []}, point) == "1 of 2 requests were completed"
    assert incomplete({"completed": 2, "total_output_tokens": 6}, point).startswith("6 of 8 tokens were generated")


def test_bursty() -> None:
    runs = [Run("dense", 0, name, 0, {"in_bursts": share}) for name, share in (("a", 0.9), ("b", 0.1), ("a", 0.8))]
    assert bursty(runs) == ["a"]
    assert bursty([Run("dense", 0, "a", 0, {})]) == []
