"""Reading what vLLM says of itself: its metrics, in Prometheus' text format, and its log. Pure functions of text."""

from __future__ import annotations

import re
from dataclasses import dataclass

PREEMPTIONS = "vllm:num_preemptions_total"
QUEUE_SECONDS = "vllm:request_queue_time_seconds_sum"
PREFILL_SECONDS = "vllm:request_prefill_time_seconds_sum"
DECODE_SECONDS = "vllm:request_decode_time_seconds_sum"
REQUESTS = "vllm:request_decode_time_seconds_count"
OUTPUT_TOKENS = "vllm:generation_tokens_total"
WATCHED = (PREEMPTIONS, QUEUE_SECONDS, PREFILL_SECONDS, DECODE_SECONDS, REQUESTS, OUTPUT_TOKENS)
"""Counters whose growth over a run is reported."""

_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
# The last line of a traceback, after what vLLM puts before every line: the process, and the level, time and place.
_ERROR = re.compile(r"^(?:\(.*?\) )?(?:ERROR [^\]]*\] )?[\w.]*(?:Error|Exception): (?P<text>\S.*)", re.MULTILINE)


@dataclass(frozen=True)
class CacheConfig:
    """The KV cache of a running engine; None where this vLLM does not tell.

    tokens: how many it holds.  concurrency: how many sequences of the model's full length.
    dtype: its element type as the flag names it, `auto` for the model's own.
    """

    tokens: int | None
    concurrency: float | None
    dtype: str


@dataclass(frozen=True)
class LogFacts:
    """What a server's log tells of its start; None where it does not.

    dtype: element type that the weights are served in.  load_seconds: reading the weights.
    weight_gib: memory that they took, GiB, which vLLM tells on GPUs.  engine_seconds: profiling, compiling and warm-up.
    kv_cache_tokens, max_concurrency: what `CacheConfig` holds, which vLLM had in its log before its metrics had it.
    """

    dtype: str | None
    load_seconds: float | None
    weight_gib: float | None
    engine_seconds: float | None
    kv_cache_tokens: int | None
    max_concurrency: float | None


def cache_config(metrics: str) -> CacheConfig:
    """The labels of `vllm:cache_config_info`."""
    line = re.search(r"^vllm:cache_config_info\{(.*)\}", metrics, re.MULTILINE)
    labels = dict(_LABEL.findall(line[1])) if line else {}
    tokens, concurrency = labels.get("kv_cache_size_tokens", ""), labels.get("kv_cache_max_concurrency", "")
    return CacheConfig(
        int(tokens) if tokens.isdigit() else None,
        float(concurrency) if re.fullmatch(r"[\d.]+", concurrency) else None,
        labels.get("cache_dtype", "auto"),
    )


def counter(metrics: str, name: str) -> float:
    """The value of a counter, summed over its labels; 0 where there is none."""
    samples = re.findall(rf"^{re.escape(name)}(?:\{{.*\}})? (\S+)$", metrics, re.MULTILINE)
    return sum(map(float, samples))


def growth(before: str, after: str) -> dict[str, float]:
    """By how much each of the watched counters grew."""
    return {name: counter(after, name) - counter(before, name) for name in WATCHED}


def log_facts(log: str) -> LogFacts:
    """What the log of a start tells; of several workers the slowest and the largest."""
    dtype = re.search(r"\bdtype=torch\.(\w+)", log)
    tokens = re.search(r"KV cache size: ([\d,]+) tokens", log)
    concurrency = re.search(r"Maximum concurrency for [\d,]+ tokens per request: ([\d.]+)x", log)
    return LogFacts(
        dtype[1] if dtype else None,
        _largest(log, r"Loading weights took ([\d.]+) seconds"),
        _largest(log, r"Model loading took ([\d.]+) (?:GiB|GB)"),
        _largest(log, r"init engine .* took ([\d.]+) s"),
        int(tokens[1].replace(",", "")) if tokens else None,
        float(concurrency[1]) if concurrency else None,
    )


def reason_in(log: str) -> str:
    """The first error that a log names, without where it was raised; empty when it names none.

    The first, since vLLM's processes report the root of a failure before what followed from it.
    """
    match = _ERROR.search(log)
    return match["text"].strip().rstrip(".:") if match else ""


def _largest(log: str, pattern: str) -> float | None:
    return max(map(float, re.findall(pattern, log)), default=None)
