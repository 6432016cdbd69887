"""vLLM without a server: `vllm bench throughput` and `vllm bench latency`, each a process that loads the model anew."""

from __future__ import annotations

import json
import shlex
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ...checkpoints import Checkpoint
from ...plan import Plan, Turn
from ...processes import run_to_end
from ...results import Run
from ...workload import Point
from ..base import Announce, BenchmarkError, Session
from .launch import VLLM, launch_of
from .server import cause_in, end_of

_LATENCY_RUNS = 5
_LATENCY_VOCABULARY = 10_000
"""`vllm bench latency` draws its prompts from so many tokens, whatever the model's vocabulary."""


class OfflineSession(Session[None]):
    """Times all requests of a point at once, and one batch of its concurrency.

    The batch is left out where some vocabulary is too small for the prompts of `vllm bench latency`.
    """

    def __init__(self, plan: Plan, announce: Announce) -> None:
        super().__init__(plan, announce)
        self.launch = launch_of(plan)
        self.kinds = ["throughput"]
        if all(item.vocabulary >= _LATENCY_VOCABULARY for item in plan.checkpoints):
            self.kinds.append("latency")
        else:
            announce(f"vllm bench latency is left out: it needs a vocabulary of {_LATENCY_VOCABULARY:,} tokens")

    @contextmanager
    def running(self, checkpoint: Checkpoint, repetition: int, place: int) -> Iterator[None]:
        """Nothing: every measurement starts a process of its own."""
        yield

    def measure(self, running: None, turn: Turn) -> Run:
        """Run vLLM's own benchmarks at one point."""
        commands = _commands(turn, self.launch.flags)
        metrics: dict[str, float] = {}
        for kind in self.kinds:
            metrics |= _READERS[kind](self._told(commands[kind], kind, turn), turn.point)
            self.commands.append(shlex.join(("vllm", *commands[kind])))
        self.announce(f"{turn}: {metrics['output_throughput']:,.1f} output tokens/s")
        return turn.measured(metrics)

    def _told(self, command: Sequence[str], kind: str, turn: Turn) -> Any:
        """The JSON that a command writes."""
        stem = f"{turn.stem}-{kind}"
        result_file, log = self.plan.logs / f"{stem}.json", self.plan.logs / f"{stem}.log"
        result_file.unlink(missing_ok=True)
        # vLLM divides by the time that its progress bar shows, which is 0 where bars are turned off.
        environment = {**self.launch.environment, "TQDM_DISABLE": None}
        code = run_to_end([*VLLM, *command, "--output-json", str(result_file)], log, environment)
        if code or not result_file.is_file():
            what = f"vllm {' '.join(command[:2])} ended with code {code}"
            raise BenchmarkError(f"{turn}: {cause_in(log)}{what}{end_of(log)}")
        return json.loads(result_file.read_text(encoding="utf-8"))


def _commands(turn: Turn, flags: Sequence[str]) -> dict[str, list[str]]:
    point, lengths = turn.point, turn.point.lengths
    prompt, output = str(lengths.prompt), str(lengths.output)
    common = ["--model", turn.checkpoint.source, "--seed", str(turn.seed), *flags]
    # `throughput` takes --input-len too, but its default for random prompts would win over it.
    random = ["--dataset-name", "random", "--random-input-len", prompt, "--random-output-len", output]
    batch = ["--input-len", prompt, "--output-len", output, "--batch-size", str(point.concurrency)]
    iterations = ["--num-iters-warmup", "1", "--num-iters", str(_LATENCY_RUNS)]
    return {
        "throughput": ["bench", "throughput", *common, *random, "--num-prompts", str(point.requests)],
        "latency": ["bench", "latency", *common, *batch, *iterations],
    }


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
