"""vLLM without a server: `vllm bench throughput` and `vllm bench latency`, each a process that loads the model anew."""

from __future__ import annotations

import json
import shlex
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .checkpoints import Checkpoint
from .processes import VLLM, run_to_end
from .server import because, end_of
from .serving import Announce, BenchmarkError, Result, Serving, place_of, run_record, seed_of, stem_of
from .workload import Point

_LATENCY_RUNS = 5
_LATENCY_VOCABULARY = 10_000
"""`vllm bench latency` draws its prompts from so many tokens, whatever the model's vocabulary."""


def run_offline(
    options: Serving,
    checkpoints: Sequence[Checkpoint],
    points: Sequence[Point],
    announce: Announce = lambda line: None,
) -> Result:
    """Time every point on every checkpoint, A B A B …: all its requests at once, and one batch of its concurrency.

    The batch is left out where some vocabulary is too small for the prompts of `vllm bench latency`.
    Returns `runs` and `commands` as JSON types. Raises BenchmarkError.
    """
    kinds = ["throughput"]
    if all(item.vocabulary >= _LATENCY_VOCABULARY for item in checkpoints):
        kinds.append("latency")
    else:
        announce(f"vllm bench latency is left out: it needs a vocabulary of {_LATENCY_VOCABULARY:,} tokens")
    runs: list[Result] = []
    commands: list[str] = []
    for repetition in range(options.repetitions):
        for number, point in enumerate(points):
            seed = seed_of(options.seed, repetition, number)
            for checkpoint in checkpoints:
                where = place_of(checkpoint, repetition, point)
                metrics: dict[str, float] = {}
                commands_of = _commands(checkpoint, point, seed, options.engine.flags)
                for kind in kinds:
                    command = commands_of[kind]
                    stem = f"{stem_of(checkpoint, repetition, point)}-{kind}"
                    metrics |= _READERS[kind](_run(command, options, options.logs / stem, where), point)
                    commands.append(shlex.join(("vllm", *command)))
                runs.append(run_record(checkpoint, repetition, point, seed, metrics))
                announce(f"{where}: {metrics['output_throughput']:,.1f} output tokens/s")
    return {"starts": [], "runs": runs, "commands": commands}


def _commands(checkpoint: Checkpoint, point: Point, seed: int, flags: Sequence[str]) -> dict[str, list[str]]:
    lengths = point.lengths
    prompt, output = str(lengths.prompt), str(lengths.output)
    common = ["--model", checkpoint.source, "--seed", str(seed), *flags]
    # `throughput` takes --input-len too, but its default for random prompts would win over it.
    random = ["--dataset-name", "random", "--random-input-len", prompt, "--random-output-len", output]
    batch = ["--input-len", prompt, "--output-len", output, "--batch-size", str(point.concurrency)]
    iterations = ["--num-iters-warmup", "1", "--num-iters", str(_LATENCY_RUNS)]
    return {
        "throughput": ["bench", "throughput", *common, *random, "--num-prompts", str(point.requests)],
        "latency": ["bench", "latency", *common, *batch, *iterations],
    }


def _run(command: Sequence[str], options: Serving, stem: Path, where: str) -> Result:
    result_file, log = stem.with_name(f"{stem.name}.json"), stem.with_name(f"{stem.name}.log")
    result_file.unlink(missing_ok=True)
    # vLLM divides by the time that its progress bar shows, which is 0 where bars are turned off.
    environment = {**options.engine.environment, "TQDM_DISABLE": None}
    code = run_to_end([*VLLM, *command, "--output-json", str(result_file)], log, environment)
    if code or not result_file.is_file():
        raise BenchmarkError(f"{where}: {because(log)}vllm {' '.join(command[:2])} ended with code {code}{end_of(log)}")
    return json.loads(result_file.read_text(encoding="utf-8"))


def read_throughput(result: Mapping[str, Any], point: Point) -> dict[str, float]:
    """Requests and tokens per second of `vllm bench throughput`; BenchmarkError when it ran fewer requests."""
    if result["num_requests"] != point.requests:
        raise BenchmarkError(f"{point.name}: {result['num_requests']} of {point.requests} requests were run")
    rate = result["requests_per_second"]
    return {
        "request_throughput": rate,
        "output_throughput": rate * point.lengths.output,
        "total_token_throughput": result["tokens_per_second"],
        "prompt_tokens": result["total_num_tokens"] / point.requests - point.lengths.output,
        "output_tokens": float(point.lengths.output),
    }


def read_latency(result: Mapping[str, Any], point: Point) -> dict[str, float]:
    """Time of one batch, in ms, of `vllm bench latency`."""
    latencies = [1000 * seconds for seconds in result["latencies"]]
    return {"mean_batch_ms": statistics.fmean(latencies), "p50_batch_ms": statistics.median(latencies)}


_READERS = {"throughput": read_throughput, "latency": read_latency}
