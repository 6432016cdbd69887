from __future__ import annotations

import pytest

from optimum_grasprune.serving.engines.vllm.telemetry import (
    PREEMPTIONS,
    cache_config,
    counter,
    growth,
    log_facts,
    reason_in,
)
from optimum_grasprune.serving.fit import element_bytes

METRICS = """\
# HELP vllm:num_preemptions_total Cumulative number of preemptions.
# TYPE vllm:num_preemptions_total counter
vllm:num_preemptions_total{engine="0",model_name="/m"} 3.0
vllm:num_preemptions_total{engine="1",model_name="/m"} 4.0
vllm:num_preemptions_created{engine="0",model_name="/m"} 1.79e+09
vllm:request_queue_time_seconds_sum{engine="0",model_name="/m"} 1.5e-02
vllm:cache_config_info{block_size="128",cache_dtype="auto",kv_cache_max_concurrency="42.5",\
kv_cache_memory_bytes="67108864",kv_cache_size_tokens="21760",num_gpu_blocks="170"} 1.0
"""

LOG = """\
(EngineCore pid=9) INFO [core.py:133] Initializing a V1 LLM engine with config: model='/m', dtype=torch.bfloat16, x=1
(Worker pid=10) INFO [default_loader.py:501] Loading weights took 0.25 seconds
(Worker pid=11) INFO [default_loader.py:501] Loading weights took 1.75 seconds
(Worker pid=10) INFO [gpu_model_runner.py:5150] Model loading took 12.55 GiB memory and 3.10 seconds
(EngineCore pid=9) INFO [kv_cache_utils.py:2327] GPU KV cache size: 699,008 tokens, \
Maximum concurrency for 4,096 tokens per request: 170.66x
(EngineCore pid=9) INFO [core.py:402] init engine (profile, create kv cache, warmup model) took 2.51 s
"""

FAILURE = """\
(APIServer pid=8) WARNING 11-24 19:15:44 [system_utils.py:255] This can cause errors like `OSError: [Errno 24] Too many`
(EngineCore pid=9) ERROR [core.py:1] EngineCore failed to start.
(EngineCore pid=9) ERROR [core.py:1] Traceback (most recent call last):
(EngineCore pid=9) ERROR 11-24 19:16:29 [core.py:1] ValueError: Available memory is less than requested memory.
(APIServer pid=8) RuntimeError: Engine core initialization failed. See root cause above.
"""


def test_cache_config() -> None:
    found = cache_config(METRICS)
    assert (found.tokens, found.concurrency, found.dtype) == (21760, 42.5, "auto")


def test_cache_config_of_a_server_that_does_not_tell() -> None:
    found = cache_config('vllm:cache_config_info{cache_dtype="fp8",kv_cache_size_tokens="None"} 1.0\n')
    assert (found.tokens, found.concurrency, found.dtype) == (None, None, "fp8")
    assert cache_config("").tokens is None


def test_counter_sums_engines_and_takes_only_its_name() -> None:
    assert counter(METRICS, PREEMPTIONS) == 7
    assert counter(METRICS, "vllm:num_preemptions") == 0


def test_growth() -> None:
    after = METRICS.replace("} 3.0", "} 13.0").replace("1.5e-02", "2.0e-02")
    grown = growth(METRICS, after)
    assert grown[PREEMPTIONS] == 10
    assert grown["vllm:request_queue_time_seconds_sum"] == pytest.approx(0.005)


def test_log_facts_are_those_of_the_slowest_worker() -> None:
    facts = log_facts(LOG)
    assert (facts.dtype, facts.load_seconds, facts.weight_gib, facts.engine_seconds) == ("bfloat16", 1.75, 12.55, 2.51)
    assert (facts.kv_cache_tokens, facts.max_concurrency) == (699_008, 170.66)


def test_log_facts_of_another_log() -> None:
    assert set(vars(log_facts("nothing to read")).values()) == {None}


def test_reason_is_the_first_error() -> None:
    assert reason_in(FAILURE) == "Available memory is less than requested memory"
    assert reason_in("INFO all is well\n") == ""
    assert reason_in("  File x\nhuggingface_hub.errors.HFValidationError: no such name.\n") == "no such name"


@pytest.mark.parametrize(("name", "size"), [("bfloat16", 2), ("float32", 4), ("fp8_e4m3", 1), ("half", 2)])
def test_element_bytes(name: str, size: int) -> None:
    assert element_bytes(name) == size
