"""The serving benchmark: real servers, real clients, every point of a sweep on every checkpoint.

A repetition runs all checkpoints, A B A B …, so that what drifts on the machine meets all of them alike, and results
are compared within a repetition.
"""

from __future__ import annotations

import json
import shlex
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import GraspruneError
from ..model_files import optional_file
from ..writing import slug
from .checkpoints import Checkpoint
from .engine import Engine
from .metrics import (
    DECODE_SECONDS,
    OUTPUT_TOKENS,
    PREEMPTIONS,
    PREFILL_SECONDS,
    QUEUE_SECONDS,
    REQUESTS,
    cache_config,
    growth,
    log_facts,
)
from .processes import VLLM, run_to_end
from .server import Server, ServerError, end_of, served
from .workload import Point

Announce = Callable[[str], None]
Result = dict[str, Any]

_THROUGHPUTS = ("request_throughput", "output_throughput", "total_token_throughput")
_LATENCIES = ("ttft", "tpot", "itl", "e2el")
_STATISTICS = ("mean", "p50", "p99")
_WARM_UP_PROMPT = 32
"""Tokens of a warm-up prompt where the prompts come from a file."""
_TOGETHER_SECONDS = 1e-4
"""Tokens less apart than this came in one piece of the stream: no model takes steps so short."""


class BenchmarkError(GraspruneError):
    """A point could not be measured; the message names the checkpoint and the point."""


@dataclass(frozen=True)
class Serving:
    """How a serving benchmark is run.

    logs: folder for the output of servers and clients.  repetitions: of everything.  together: all servers stay up, and
    take turns at every point; else each is started once in every repetition and has the machine to itself.
    port: of the first server, a free one by default.  start_seconds: time that a server may take to be ready.
    trust_remote_code, revision: for the tokenizer that the client loads.
    """

    engine: Engine
    logs: Path
    repetitions: int = 3
    together: bool = False
    port: int | None = None
    start_seconds: float = 1800
    seed: int = 0
    trust_remote_code: bool = False
    revision: str | None = None


def run_serving(
    options: Serving,
    checkpoints: Sequence[Checkpoint],
    points: Sequence[Point],
    announce: Announce = lambda line: None,
) -> Result:
    """Measure every point on every checkpoint.

    Returns JSON types: `starts` and `runs`, one for each start of a server and each measured point, and `commands`.
    Raises ServerError or BenchmarkError; no server is left running.
    """
    session = _Session(options, announce)
    if options.together:
        with ExitStack() as stack:
            servers = [stack.enter_context(session.started(item, 0, place)) for place, item in enumerate(checkpoints)]
            for repetition in range(options.repetitions):
                for number, point in enumerate(points):
                    for checkpoint, server in zip(checkpoints, servers, strict=True):
                        session.measure(checkpoint, server, repetition, point, number)
    else:
        for repetition in range(options.repetitions):
            for checkpoint in checkpoints:
                with session.started(checkpoint, repetition, 0) as server:
                    for number, point in enumerate(points):
                        session.measure(checkpoint, server, repetition, point, number)
    return {"starts": session.starts, "runs": session.runs, "commands": session.commands}


class _Session:
    """Starts servers, runs clients, and keeps what they gave."""

    def __init__(self, options: Serving, announce: Announce) -> None:
        self.options, self.announce = options, announce
        self.starts: list[Result] = []
        self.runs: list[Result] = []
        self.commands: list[str] = []

    @contextmanager
    def started(self, checkpoint: Checkpoint, repetition: int, place: int) -> Iterator[Server]:
        """A checkpoint's server for the time of a block. place: of its port after the first."""
        options, engine = self.options, self.options.engine
        log = options.logs / f"{slug(checkpoint.name)}-{repetition + 1}.server.log"
        self.announce(f"{checkpoint.name}: starting the server")
        with _named(checkpoint.name), ExitStack() as stack:
            server = stack.enter_context(
                served(
                    checkpoint.source,
                    log,
                    flags=engine.flags,
                    environment=engine.environment,
                    port=None if options.port is None else options.port + place,
                    start_seconds=options.start_seconds,
                )
            )
            start = {"checkpoint": checkpoint.name, "repetition": repetition, **_start_facts(server)}
            self.starts.append(start)
            self._note(server.command)
            self.announce(
                f"{checkpoint.name}: ready after {server.seconds:.1f} s, {start['kv_cache_tokens']} KV tokens"
            )
            yield server

    def measure(self, checkpoint: Checkpoint, server: Server, repetition: int, point: Point, number: int) -> None:
        """Run the client at one point. number: of the point, which every checkpoint asks with the same seed."""
        options = self.options
        stem = stem_of(checkpoint, repetition, point)
        result_file, log = options.logs / f"{stem}.json", options.logs / f"{stem}.client.log"
        result_file.unlink(missing_ok=True)
        seed = seed_of(options.seed, repetition, number)
        command = client_command(server, point, seed, result_file, trust_remote_code=options.trust_remote_code)
        command += _tokenizer_flags(checkpoint, options.revision)
        where = place_of(checkpoint, repetition, point)
        try:
            server.warm_up(point.lengths.prompt or _WARM_UP_PROMPT, point.lengths.output, point.concurrency)
        except ServerError as error:
            raise BenchmarkError(f"{where}: {error}") from None
        before = server.metrics()
        code = run_to_end([*VLLM, *command], log)
        if code or not result_file.is_file():
            raise BenchmarkError(f"{where}: the client ended with code {code}{end_of(log)}")
        try:
            result = json.loads(result_file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise BenchmarkError(f"{where}: {result_file} is not JSON: {error}") from None
        if problem := incomplete(result, point):
            raise BenchmarkError(f"{where}: {problem}{end_of(server.log)}")
        metrics = measured(result, growth(before, server.metrics()))
        record = run_record(checkpoint, repetition, point, seed, metrics)
        self.runs.append({**record, "percentiles": percentiles_of(result)})
        self._note(("vllm", *command))
        self.announce(f"{where}: {metrics['output_throughput']:,.1f} output tokens/s")

    def _note(self, command: Sequence[str]) -> None:
        self.commands.append(shlex.join(command))


def seed_of(seed: int, repetition: int, number: int) -> int:
    """The seed of a point in a repetition, the same for every checkpoint.

    Each has its own, or a server that caches prefixes would know the prompts.  number: of the point.
    """
    return seed + 1000 * repetition + number


def stem_of(checkpoint: Checkpoint, repetition: int, point: Point) -> str:
    """What the names of a run's files begin with."""
    return f"{slug(checkpoint.name)}-{repetition + 1}-{slug(point.workload)}-{point.concurrency}"


def place_of(checkpoint: Checkpoint, repetition: int, point: Point) -> str:
    """Names a measurement in messages."""
    return f"{checkpoint.name} at {point.name}, repetition {repetition + 1}"


def run_record(
    checkpoint: Checkpoint, repetition: int, point: Point, seed: int, metrics: Mapping[str, float]
) -> Result:
    """A measurement as JSON types. repetition: counted from 0; what has the same is compared."""
    names = {"checkpoint": checkpoint.name, "repetition": repetition, "point": point.name}
    return {**names, "seed": seed, "metrics": dict(metrics)}


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Errors of a server name the checkpoint."""
    try:
        yield
    except ServerError as error:
        raise ServerError(f"{name}: {error}") from None


def _start_facts(server: Server) -> Result:
    cache, facts = cache_config(server.metrics()), log_facts(server.log.read_text(errors="replace"))
    return {
        **asdict(facts),
        "seconds": round(server.seconds, 2),
        "kv_cache_tokens": cache.tokens or facts.kv_cache_tokens,
        "max_concurrency": cache.concurrency or facts.max_concurrency,
        "kv_cache_dtype": cache.dtype,
    }


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


def _tokenizer_flags(checkpoint: Checkpoint, revision: str | None) -> list[str]:
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


def measured(result: Mapping[str, Any], grown: Mapping[str, float]) -> dict[str, float]:
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


def percentiles_of(result: Mapping[str, Any]) -> dict[str, list[float]]:
    """The 1st to 99th percentiles of the times to the first token and between tokens, in ms."""
    times = {"ttft": list(result["ttfts"]), "itl": [value for values in result["itls"] for value in values]}
    return {name: _percentiles([1000 * value for value in values]) for name, values in times.items()}


def _percentiles(values: Sequence[float]) -> list[float]:
    if len(values) < 2:
        return [round(value, 4) for value in values] * 99
    return [round(value, 4) for value in statistics.quantiles(values, n=100, method="inclusive")]
