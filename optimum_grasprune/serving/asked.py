"""What a user asks a benchmark for, and the plan that this is."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import GraspruneError, OptionError
from ..model_files import check_revision
from .checkpoints import Checkpoint, named, read_checkpoints
from .engines import ENGINES, Engine
from .engines.registry import chosen
from .fit import GIB
from .long_context import overflowing
from .plan import Plan
from .results import LOGS_FOLDER, RunOptions
from .workload import Lengths, Point, check_prompts, parse_lengths, positive, sweep

CONCURRENCY = (1, 4, 16)
LENGTHS = ("128:64", "512:32")
"""Taken as far as the models read so many; where they read none of them, all that they read, half of it generated."""
OUTPUT_TOKENS = 128
"""Generated for each prompt of a file."""
REPETITIONS = 3
START_SECONDS = 1800
LONG_CONTEXT = 4096
"""Tokens of a sequence in the long-context mode, where the models read as many."""


@dataclass(frozen=True)
class Asked:
    """The options of a benchmark as they are given, text for text; None for those that are not.

    dense, pruned: SOURCE, of the pruned ones also NAME=SOURCE.  lengths: each PROMPT:OUTPUT.  prompts: a jsonl file.
    kv_cache_memory: GiB.  serve_flags: flags for the engine in one text.  start_timeout: seconds.
    """

    dense: str
    pruned: Sequence[str]
    engine: str | None = None
    mode: str | None = None
    concurrency: Sequence[str] | None = None
    lengths: Sequence[str] | None = None
    prompts: str | None = None
    output_len: str | None = None
    num_prompts: str | None = None
    repetitions: str | None = None
    kv_cache_memory: str | None = None
    serve_flags: str | None = None
    together: bool = False
    port: str | None = None
    start_timeout: str | None = None
    seed: str | None = None
    dtype: str | None = None
    device: str | None = None
    trust_remote_code: bool = False
    revision: str | None = None

    def plan(self, output: Path) -> Plan:
        """What is to be run. output: folder for results. Reads the checkpoints; raises GraspruneError."""
        engine, mode = self._engine_and_mode()
        check_revision(self.revision, [self.dense, *(named(entry)[1] for entry in self.pruned)])
        checkpoints = read_checkpoints(
            self.dense, self.pruned, trust_remote_code=self.trust_remote_code, revision=self.revision
        )
        points, memory = self._workload(ENGINES.get(engine), mode, checkpoints)
        return Plan(
            engine=engine,
            mode=mode,
            checkpoints=checkpoints,
            points=points,
            logs=output / LOGS_FOLDER,
            options=self._options(memory),
            device=self.device,
            trust_remote_code=self.trust_remote_code,
            revision=self.revision,
        )

    def _engine_and_mode(self) -> tuple[str, str]:
        """An engine that is installed, and a mode of its own in which all that was asked for has a meaning."""
        name, mode = chosen(self.engine, self.mode)
        engine = ENGINES.get(name)
        for option in engine.modes[mode].without:
            value = getattr(self, option)
            if value is True:
                raise GraspruneError(f"--{option}: has no meaning in --mode {mode}")
            if value not in (None, False):
                raise OptionError(option, value, f"has no meaning in --mode {mode}")
        engine.check_installed()
        return name, mode

    def _workload(
        self, engine: type[Engine], mode: str, checkpoints: list[Checkpoint]
    ) -> tuple[list[Point], int | None]:
        """The points to measure, and the bytes of the KV cache; None for what the engine finds."""
        lengths = [parse_lengths(text) for text in self.lengths or ()]
        concurrencies = [positive("concurrency", text) for text in self.concurrency or ()]
        requests = None if self.num_prompts is None else positive("num_prompts", self.num_prompts)
        if engine.modes[mode].overflows:
            return self._overflow(engine, mode, checkpoints, lengths, concurrencies, requests)
        prompts = None
        if self.prompts is not None:
            check_prompts(Path(self.prompts))
            prompts = Path(self.prompts).resolve(), positive("output_len", self.output_len or OUTPUT_TOKENS, least=2)
        if not lengths and prompts is None:
            longest = min(item.longest for item in checkpoints)
            fitting = [asked for asked in map(parse_lengths, LENGTHS) if asked.total <= longest]
            lengths = fitting or [_halves(longest)]
        _check_lengths(checkpoints, lengths)
        points = sweep(lengths, concurrencies or CONCURRENCY, requests=requests, prompts=prompts)
        return points, self._memory() or engine.default_cache_bytes()

    def _overflow(
        self,
        engine: type[Engine],
        mode: str,
        checkpoints: list[Checkpoint],
        lengths: list[Lengths],
        concurrencies: list[int],
        requests: int | None,
    ) -> tuple[list[Point], int]:
        """The one point of such a mode, and memory that only the pruned models' caches make do with."""
        for option, values in (("lengths", lengths), ("concurrency", concurrencies)):
            if len(values) > 1:
                raise OptionError(option, " ".join(getattr(self, option)), f"--mode {mode} takes only one")
        (asked,) = lengths or [_halves(min(LONG_CONTEXT, *(item.longest for item in checkpoints)))]
        _check_lengths(checkpoints, [asked])
        _check_windows(checkpoints, asked, mode)
        sizes = engine.element_sizes(self._options(None), checkpoints[0].dtype)
        dense, *pruned = (item.shape.kv_width * sizes.kv for item in checkpoints)
        given = concurrencies[0] if concurrencies else None
        concurrency, memory = overflowing(dense, pruned, asked.total, given, self._memory())
        return [Point(asked, concurrency, requests or 2 * concurrency)], memory

    def _options(self, memory: int | None) -> RunOptions:
        return RunOptions(
            repetitions=positive("repetitions", self.repetitions or REPETITIONS),
            together=self.together,
            seed=positive("seed", self.seed or 0, least=0),
            port=None if self.port is None else positive("port", self.port),
            start_seconds=positive("start_timeout", self.start_timeout or START_SECONDS),
            kv_cache_bytes=memory,
            serve_flags=self._flags(),
            dtype=self.dtype,
        )

    def _flags(self) -> tuple[str, ...]:
        given = self.serve_flags or ""
        try:
            flags = shlex.split(given)
        except ValueError as error:
            raise OptionError("serve_flags", given, str(error)) from None
        return (*(("--dtype", self.dtype) if self.dtype else ()), *flags)

    def _memory(self) -> int | None:
        text = self.kv_cache_memory
        if text is None:
            return None
        try:
            size = float(text)
        except ValueError:
            size = math.nan
        if not 0 < size < math.inf:
            raise OptionError("kv_cache_memory", text, "should be a number of GiB above 0")
        return int(size * GIB)


def _halves(tokens: int) -> Lengths:
    return Lengths(tokens // 2, tokens // 2)


def _check_windows(checkpoints: list[Checkpoint], asked: Lengths, mode: str) -> None:
    """Raise OptionError where a sequence takes less memory than its tokens in sum: an engine gives back old ones."""
    for item in checkpoints:
        if any(layer.window < asked.total for layer in item.shape.windowed):
            reason = (
                f"layers of the model {item.source} see a window of fewer than {asked.total} tokens, so that what its "
                "cache holds is the engine's affair; give shorter --lengths"
            )
            raise OptionError("mode", mode, reason)


def _check_lengths(checkpoints: list[Checkpoint], lengths: list[Lengths]) -> None:
    for item in checkpoints:
        for asked in lengths:
            if asked.total > item.longest:
                text = f"{asked.prompt}:{asked.output}"
                raise OptionError("lengths", text, f"the model {item.source} reads at most {item.longest} tokens")
