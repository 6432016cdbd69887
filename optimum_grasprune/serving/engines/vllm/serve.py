"""The serving benchmark: real servers, real clients."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict

from ....writing import slug
from ...checkpoints import Checkpoint
from ...plan import Plan, Turn
from ...processes import run_to_end
from ...results import Run, Start
from ..base import Announce, BenchmarkError, Session
from .client import client_command, incomplete, percentiles_of, quantities_of, tokenizer_flags
from .launch import VLLM, launch_of
from .server import Server, ServerError, end_of, served
from .telemetry import cache_config, growth, log_facts

_WARM_UP_PROMPT = 32
"""Tokens of a warm-up prompt where the prompts come from a file."""


class ServeSession(Session[Server]):
    """Starts servers and runs clients."""

    def __init__(self, plan: Plan, announce: Announce) -> None:
        super().__init__(plan, announce)
        self.launch = launch_of(plan, self.own_flags(plan))

    @staticmethod
    def own_flags(plan: Plan) -> Sequence[str]:
        """Flags of the mode, which those of the user win over."""
        return ()

    @contextmanager
    def running(self, checkpoint: Checkpoint, repetition: int, place: int) -> Iterator[Server]:
        """A checkpoint's server for the time of a block. place: of its port after the first."""
        options = self.plan.options
        log = self.plan.logs / f"{slug(checkpoint.name)}-{repetition + 1}.server.log"
        self.announce(f"{checkpoint.name}: starting the server")
        with _named(checkpoint.name), ExitStack() as stack:
            server = stack.enter_context(
                served(
                    checkpoint.source,
                    log,
                    flags=self.launch.flags,
                    environment=self.launch.environment,
                    port=None if options.port is None else options.port + place,
                    start_seconds=options.start_seconds,
                )
            )
            start = _start(checkpoint, repetition, server)
            self.starts.append(start)
            self.commands.append(shlex.join(server.command))
            self.announce(f"{checkpoint.name}: ready after {server.seconds:.1f} s, {start.kv_cache_tokens} KV tokens")
            yield server

    def measure(self, running: Server, turn: Turn) -> Run:
        """Run the client at one point."""
        plan, point = self.plan, turn.point
        result_file, log = plan.logs / f"{turn.stem}.json", plan.logs / f"{turn.stem}.client.log"
        result_file.unlink(missing_ok=True)
        command = client_command(running, point, turn.seed, result_file, trust_remote_code=plan.trust_remote_code)
        command += tokenizer_flags(turn.checkpoint, plan.revision)
        try:
            running.warm_up(point.lengths.prompt or _WARM_UP_PROMPT, point.lengths.output, point.concurrency)
        except ServerError as error:
            raise BenchmarkError(f"{turn}: {error}") from None
        before = running.metrics()
        code = run_to_end([*VLLM, *command], log)
        if code or not result_file.is_file():
            raise BenchmarkError(f"{turn}: the client ended with code {code}{end_of(log)}")
        try:
            result = json.loads(result_file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise BenchmarkError(f"{turn}: {result_file} is not JSON: {error}") from None
        if problem := incomplete(result, point):
            raise BenchmarkError(f"{turn}: {problem}{end_of(running.log)}")
        metrics = quantities_of(result, growth(before, running.metrics()))
        self.commands.append(shlex.join(("vllm", *command)))
        self.announce(f"{turn}: {metrics['output_throughput']:,.1f} output tokens/s")
        return turn.measured(metrics, percentiles_of(result))


class LongContextSession(ServeSession):
    """The same with as many sequences as the pruned models' caches hold, and no longer ones."""

    @staticmethod
    def own_flags(plan: Plan) -> Sequence[str]:
        """What the one point needs, so that vLLM plans for nothing else."""
        (point,) = plan.points
        return ("--max-model-len", str(point.lengths.total), "--max-num-seqs", str(point.concurrency))


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Errors of a server name the checkpoint."""
    try:
        yield
    except ServerError as error:
        raise ServerError(f"{name}: {error}") from None


def _start(checkpoint: Checkpoint, repetition: int, server: Server) -> Start:
    cache, facts = cache_config(server.metrics()), log_facts(server.log.read_text(errors="replace"))
    told = {
        "kv_cache_tokens": cache.tokens or facts.kv_cache_tokens,
        "max_concurrency": cache.concurrency or facts.max_concurrency,
    }
    return Start(
        checkpoint.name,
        repetition,
        **{**asdict(facts), **told},
        seconds=round(server.seconds, 2),
        kv_cache_dtype=cache.dtype,
    )
