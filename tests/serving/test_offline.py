from __future__ import annotations

import pytest

from optimum_grasprune.serving.engines.base import BenchmarkError
from optimum_grasprune.serving.engines.vllm.offline import read_latency, read_throughput
from optimum_grasprune.serving.workload import Lengths, Point

POINT = Point(Lengths(16, 4), 2, 8)
RESULT = {"num_requests": 8, "total_num_tokens": 8 * 21, "requests_per_second": 2.0, "tokens_per_second": 42.0}


def test_throughput_by_hand() -> None:
    found = read_throughput(RESULT, POINT)
    assert (found["request_throughput"], found["output_throughput"], found["total_token_throughput"]) == (2, 8, 42)
    assert (found["prompt_tokens"], found["output_tokens"]) == (17, 4)


def test_fewer_requests_than_asked() -> None:
    with pytest.raises(BenchmarkError, match="16:4 × 2: 7 of 8 requests were run"):
        read_throughput({**RESULT, "num_requests": 7}, POINT)


def test_latency_by_hand() -> None:
    found = read_latency({"latencies": [0.1, 0.2, 0.6]}, POINT)
    assert found["mean_batch_ms"] == pytest.approx(300) and found["p50_batch_ms"] == pytest.approx(200)
