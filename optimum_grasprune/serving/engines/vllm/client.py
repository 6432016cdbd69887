"""`vllm bench serve`: the command that asks a server, and what its result says. Pure functions but for a look-up."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ....model_files import optional_file
from ...checkpoints import Checkpoint
from ...results import Percentiles
from ...workload import Point
from .server import Server
from .telemetry import DECODE_SECONDS, OUTPUT_TOKENS, PREEMPTIONS, PREFILL_SECONDS, QUEUE_SECONDS, REQUESTS

_THROUGHPUTS = ("request_throughput", "output_throughput", "total_token_throughput")
_LATENCIES = ("ttft", "tpot", "itl", "e2el")
_STATISTICS = ("mean", "p50", "p99")
_TOGETHER_SECONDS = 1e-4
"""Tokens less apart than this came in one piece of the stream: no model takes steps so short."""


def client_command(
    server: Server, point: Point, seed: int, result_file: Path, *, trust_remote_code: bool = False
) -> list[str]:
    """`bench serve` with its options for one point."""
    command = ["bench", "serve", "--backend", "vllm", "--base-url", server.url, "--model", server.model]
    if point.prompts is None:
        command += ["--dataset-name", "random", "--random-input-len", str(point.lengths.prompt)]
        command += ["--random-output-len", str(point.lengths.output)]
    else:
        # Prompts as they stand in the file, since a base model has no chat template; every answer of the same length.
        command += ["--dataset-name", "custom", "--dataset-path", str(point.prompts), "--skip-chat-template"]
        command += ["--custom-output-len", str(point.lengths.output), "--ignore-eos"]
    command += ["--num-prompts", str(point.requests), "--max-concurrency", str(point.concurrency)]
    command += ["--seed", str(seed), "--temperature", "0"]
    command += ["--percentile-metrics", ",".join(_LATENCIES), "--metric-percentiles", "50,99"]
    command += ["--disable-tqdm", "--save-result", "--save-detailed"]
    command += ["--result-dir", str(result_file.parent), "--result-filename", result_file.name]
    return [*command, "--trust-remote-code"] if trust_remote_code else command


def tokenizer_flags(checkpoint: Checkpoint, revision: str | None) -> list[str]:
    """The client has no option for the tokenizer's revision, but takes the folder that the server has fetched it to."""
    file = None if revision is None else optional_file(checkpoint.source, "tokenizer_config.json", revision)
    return [] if file is None else ["--tokenizer", str(file.parent)]


def incomplete(result: Mapping[str, Any], point: Point) -> str:
    """What is wrong with a client's result when not every request was answered in full; empty when all were.

    vLLM's client writes a result also when every request failed, and its server cuts answers short, without a word, to
    what its longest sequence leaves.
    """
    completed, tokens, asked = result.get("completed", 0), result.get("total_output_tokens", 0), point.requests
    if completed != asked:
        # Each error is a traceback or an answer of the server; its last line says what happened.
        errors = [str(error).strip().splitlines()[-1] for error in result.get("errors", ()) if str(error).strip()]
        return f"{completed} of {asked} requests were completed" + (f" ({errors[0]})" if errors else "")
    if tokens != asked * point.lengths.output:
        return (
            f"{tokens} of {asked * point.lengths.output} tokens were generated: the server takes no sequences as long "
            "as prompt and output together (--max-model-len)"
        )
    return ""


def quantities_of(result: Mapping[str, Any], grown: Mapping[str, float]) -> dict[str, float]:
    """The numbers of one run: throughputs in 1/s, times in ms, tokens of a request, counts.

    result: the client's.  grown: growth of the server's counters over the run. The engine's own times leave out the
    server's front end; `in_bursts` is the share of tokens that reached the client together with the one before.
    """
    requests = grown[REQUESTS] or 1
    gaps = [gap for of_request in result["itls"] for gap in of_request]
    return {
        **{name: result[name] for name in _THROUGHPUTS},
        **{f"{kind}_{name}_ms": result[f"{kind}_{name}_ms"] for name in _LATENCIES for kind in _STATISTICS},
        "engine_prefill_ms": 1000 * grown[PREFILL_SECONDS] / requests,
        "engine_step_ms": 1000 * grown[DECODE_SECONDS] / max(1.0, grown[OUTPUT_TOKENS] - requests),
        "mean_queue_ms": 1000 * grown[QUEUE_SECONDS] / requests,
        "preemptions": grown[PREEMPTIONS],
        "prompt_tokens": result["total_input_tokens"] / result["completed"],
        "output_tokens": result["total_output_tokens"] / result["completed"],
        "in_bursts": sum(gap < _TOGETHER_SECONDS for gap in gaps) / max(1, len(gaps)),
    }


def percentiles_of(result: Mapping[str, Any]) -> Percentiles:
    """Of the times to the first token and between tokens."""
    gaps = [gap for of_request in result["itls"] for gap in of_request]
    return Percentiles(_percentiles(result["ttfts"]), _percentiles(gaps))


def _percentiles(seconds: Sequence[float]) -> tuple[float, ...]:
    values = [1000 * value for value in seconds]
    if len(values) < 2:
        return tuple([round(value, 4) for value in values] * 99)
    return tuple(round(value, 4) for value in statistics.quantiles(values, n=100, method="inclusive"))
