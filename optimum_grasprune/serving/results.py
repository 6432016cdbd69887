"""What a benchmark found, as it stands in `benchmark.json`. One class for each kind of row, one writer, one reader.

Importing this loads neither torch nor any engine.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ..errors import CheckpointError
from ..reading import json_in
from ..writing import results_folder, write_json

RESULT_NAME = "benchmark.json"
RESULT_FORMAT = 1
LOGS_FOLDER = "benchmark-logs"

Number = int | float


@dataclass(frozen=True)
class RunOptions:
    """How everything was run.

    repetitions: of everything.  together: whether all servers stayed up, or all models loaded, and took turns.
    port: of the first server, None for a free one.  start_seconds: time that a server may take to be ready.
    kv_cache_bytes: memory of the KV cache; None for what the engine finds.  serve_flags: for the engine.
    """

    repetitions: int = 3
    together: bool = False
    seed: int = 0
    port: int | None = None
    start_seconds: int = 1800
    kv_cache_bytes: int | None = None
    serve_flags: tuple[str, ...] = ()
    dtype: str | None = None


@dataclass(frozen=True)
class Machine:
    """What was computed with. memory_bytes: of the accelerator if there is one."""

    device: str
    cores: int | None
    memory_bytes: int
    system: str


@dataclass(frozen=True)
class CheckpointFacts:
    """A checkpoint as it was served. ffn_widths_multiple_of: share of the widths, by number.  kept: by its record."""

    name: str
    source: str
    parameters: int
    weight_bytes: int
    kv_bytes_per_token: int
    ffn_widths: tuple[int, ...]
    kv_heads: tuple[int, ...]
    ffn_widths_multiple_of: dict[str, float]
    kept: dict[str, float]


@dataclass(frozen=True)
class PointFacts:
    """A point of the sweep. workload: its name without concurrency.  prompt_tokens: None where a file gave them."""

    name: str
    workload: str
    prompt_tokens: int | None
    output_tokens: int
    concurrency: int
    requests: int


@dataclass(frozen=True)
class Start:
    """A server that was started, or a model that was loaded.

    dtype: element type that the weights are served in.  load_seconds: reading the weights.  weight_gib: memory that
    they took.  engine_seconds: profiling, compiling and warm-up.  kv_cache_tokens: that the cache holds.
    max_concurrency: sequences of the model's full length that it holds.  seconds: until the first healthy answer; None
    where there is no server, of which only the loading is known.
    """

    checkpoint: str
    repetition: int
    dtype: str | None = None
    load_seconds: float | None = None
    weight_gib: float | None = None
    engine_seconds: float | None = None
    kv_cache_tokens: int | None = None
    max_concurrency: float | None = None
    seconds: float | None = None
    kv_cache_dtype: str | None = None


@dataclass(frozen=True)
class Percentiles:
    """The 1st to 99th percentile, in ms. ttft: times to the first token.  itl: times between tokens."""

    ttft: tuple[float, ...]
    itl: tuple[float, ...]


@dataclass(frozen=True)
class Run:
    """A measurement. repetition: counted from 0; what has the same is compared.  metrics: quantities by name."""

    checkpoint: str
    repetition: int
    point: str
    seed: int
    metrics: dict[str, float]
    percentiles: Percentiles | None = None


@dataclass(frozen=True)
class Spread:
    """Median, smallest and largest of the repetitions."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """A quantity of a pruned checkpoint beside the dense one's, at one point.

    ratio: pruned ÷ dense within a repetition; None where the dense one's is 0.  limit: what the ratio cannot pass, at
    most that for a throughput, at least that for a time; None where nothing bounds it.
    """

    point: str
    checkpoint: str
    metric: str
    dense: Spread
    pruned: Spread
    ratio: Spread | None
    limit: float | None


@dataclass(frozen=True)
class MemoryRow:
    """What a checkpoint takes and what its KV cache holds.

    kv_cache_tokens, max_concurrency: as the server says.  kv_tokens_per_gib: from the shapes.
    kv_tokens_same_total: where the cache gets what the weights of the dense model take more.
    kv_ratio_computed, kv_ratio: tokens over the dense model's, from the shapes and as the servers say.
    """

    checkpoint: str
    kv_cache_tokens: Number | None
    max_concurrency: Number | None
    kv_tokens_per_gib: int
    kv_tokens_same_total: int | None
    kv_ratio_computed: float
    load_seconds: Spread | None
    seconds: Spread | None
    engine_seconds: Spread | None
    weight_gib: Spread | None
    kv_ratio: float | None = None


@dataclass(frozen=True)
class Measurements:
    """What an engine gave. commands: that were run for it."""

    starts: tuple[Start, ...]
    runs: tuple[Run, ...]
    commands: tuple[str, ...]


@dataclass(frozen=True)
class Result:
    """A benchmark as a whole. command: that the user gave.  checkpoints, memory: the dense one's first.

    engine: None for the first that has the mode.
    """

    format: int
    mode: str
    command: str
    options: RunOptions
    machine: Machine
    versions: dict[str, str]
    checkpoints: tuple[CheckpointFacts, ...]
    memory: tuple[MemoryRow, ...]
    points: tuple[PointFacts, ...]
    comparisons: tuple[Comparison, ...]
    starts: tuple[Start, ...]
    runs: tuple[Run, ...]
    commands: tuple[str, ...]
    engine: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The content of `benchmark.json`. What only servers and only some engines have is left out elsewhere."""
        content = json.loads(json.dumps(asdict(self), allow_nan=False))  # tuples become lists
        content["starts"] = [_start_row(start) for start in content["starts"]]
        content["runs"] = [_without_nothing(run, "percentiles") for run in content["runs"]]
        return _without_nothing(content, "engine")


def read_results(path: Path) -> Result:
    """Read a `benchmark.json`; CheckpointError when it is none, or of a format that this version does not know."""
    try:
        content = json_in(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from None
    found = content.get("format") if isinstance(content, dict) else None
    if found != RESULT_FORMAT:
        raise CheckpointError(f"{path} is no benchmark of format {RESULT_FORMAT}, but of {found}")
    try:
        return TypeAdapter(Result).validate_python(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise CheckpointError(f"{path} is damaged: {place}: {first['msg']}") from None


def write_results(result: Result, output: Path) -> None:
    """Write `benchmark.json` into a folder of results."""
    write_json(output / RESULT_NAME, result.to_dict())


def check_folder(output: Path) -> None:
    """Raise CheckpointError unless results can be written: to a new or empty folder, or to one of an earlier benchmark.

    Its folder of logs marks it as one, so that a benchmark that was killed can be run again.
    """
    results_folder(output, LOGS_FOLDER, "benchmark")


_LOADED = ("checkpoint", "repetition", "load_seconds")
"""What is told of a model that was loaded without a server."""


def _start_row(start: dict[str, Any]) -> dict[str, Any]:
    return start if start["seconds"] is not None else {name: start[name] for name in _LOADED}


def _without_nothing(row: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != name or value is not None}
