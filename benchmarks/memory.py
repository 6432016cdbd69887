"""Memory that `export` takes at its peak on models of real shapes, beside what was estimated, and what is to be held.

    python benchmarks/memory.py [--cases gates-whole fasp-streamed] [--output benchmarks/results/memory.json]
    python benchmarks/memory.py --table

Checkpoints with random weights, in bf16, are written below the temporary folder, one shard at a time, and pruned by the
command line in a process of its own, on a few tokens: neither changes what is resident. The same command with
`--dry-run` says what was estimated, and what Python and its libraries take, which is counted in. Results are added to
those in the file, with a table beside it. `--table` measures nothing: it works out on which card which model is pruned,
and how.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from optimum_grasprune import GRASPConfig
from optimum_grasprune.dummy import Dummy, shape_config, write_dummy
from optimum_grasprune.estimate import Estimate, Job, Machine, known_runners
from optimum_grasprune.record import installed_versions
from optimum_grasprune.record.stored import OPTIONAL, Stored
from optimum_grasprune.writing import write_file, write_json

GIB = 2**30
COMMAND = (sys.executable, "-m", "optimum.commands.optimum_cli", "grasprune", "export")
INTERVAL = 0.05
"""Seconds between two looks at a process."""

Limit = Callable[[Job, int], int]
"""Bytes that a case is to stay within, from what it does and the activations that are estimated for it."""

LIMITS: dict[str, Limit] = {
    "2 GiB + 3 layers": lambda job, _: 2 * GIB + 3 * largest_layer(job),
    "3 GiB": lambda *_: 3 * GIB,
    "1.3 × weights + activations": lambda job, activations: 13 * weights(job) // 10 + activations,
}


@dataclass(frozen=True)
class Case:
    """A run. options: of `export`, as words.  limit: a name in `LIMITS`, which has it from issue to issue."""

    shape: str
    runner: str
    limit: str
    options: tuple[str, ...]


CASES: dict[str, Case] = {
    **{
        f"{method}-streamed": Case("open-llama-3b", "streamed", "2 GiB + 3 layers", ("--method", method))
        for method in ("fasp", "flap", "statistical")
    },
    "gates-streamed": Case("tinyllama-1.1b", "streamed", "3 GiB", ("--compensation", "none")),
    "default-streamed": Case("tinyllama-1.1b", "streamed", "3 GiB", ()),
    "gates-whole": Case("tinyllama-1.1b", "whole", "1.3 × weights + activations", ("--compensation", "none")),
    "default-whole": Case("tinyllama-1.1b", "whole", "1.3 × weights + activations", ()),
    "fasp-whole": Case("tinyllama-1.1b", "whole", "1.3 × weights + activations", ("--method", "fasp")),
}


@dataclass(frozen=True)
class Measured(Stored):
    """What a case came to, in bytes.

    resident: at the peak, all of it.  libraries: of that, what the command takes before it reads weights.
    estimate: for the rest.  device: taken of a GPU at the peak, its context included.  limit_of: the limit in words.
    skipped: why it was not run.
    """

    shape: str
    runner: str
    command: str
    weights: int
    largest_layer: int
    limit: int
    limit_of: str
    estimate: int
    resident: int | None = None
    libraries: int | None = None
    device: int | None = field(default=None, metadata=OPTIONAL)
    device_estimate: int | None = field(default=None, metadata=OPTIONAL)
    seconds: float | None = None
    skipped: str | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class MemoryReport(Stored):
    """All cases by name, with the versions that the last of them ran with."""

    versions: Mapping[str, str]
    cases: Mapping[str, Measured]


@dataclass(frozen=True)
class Used:
    """What a process took at its peak, in bytes, and seconds."""

    resident: int
    device: int | None
    seconds: float


def weights(job: Job) -> int:
    """Bytes of all weights."""
    return job.sizes.parameters * job.element


def largest_layer(job: Job) -> int:
    """Bytes of the largest decoder layer."""
    return job.sizes.largest_layer.parameters * job.element


def activations(estimate: Mapping[str, Mapping[str, int]]) -> int:
    """The largest activations, logits among them, of any stage. estimate: sizes by stage and part."""
    wanted = ("activations", "logits", "matrices of a layer")
    return max(sum(size for part, size in parts.items() if part in wanted) for parts in estimate.values())


def peak_of(command: Sequence[str], device: str) -> Used:
    """Run a command, which has to end well, and watch what it takes. RuntimeError with its last line where it fails."""
    begun, resident = time.monotonic(), 0
    free = lowest = torch.cuda.mem_get_info()[0] if device == "cuda" else 0
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            resident = max(resident, _high_water(status))
            lowest = min(lowest, torch.cuda.mem_get_info()[0]) if device == "cuda" else 0
            time.sleep(INTERVAL)
        if process.returncode:
            errors.seek(0)
            raise RuntimeError((errors.read().decode(errors="replace").strip().splitlines() or ["without a word"])[-1])
    if not resident:  # no Linux; of all children, the largest so far
        resident = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return Used(resident, free - lowest if device == "cuda" else None, time.monotonic() - begun)


def _high_water(status: Path) -> int:
    try:
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):  # it has just ended
        return 0


class Bench:
    """Runs cases below one folder. tokens: options that say on how much text."""

    def __init__(self, folder: Path, device: str, tokens: Sequence[str]) -> None:
        self.folder, self.device, self.tokens = folder, device, tuple(tokens)
        self._help = subprocess.run((*COMMAND, "--help"), capture_output=True, text=True, check=True).stdout
        self.text = folder / "text.txt"
        # Of the dummies' own words, each of which is a token.
        self.text.write_text(" ".join(f"w{3 + index * 7919 % 31000}" for index in range(20_000)))

    def measured(self, name: str) -> Measured:
        """What a case takes; without numbers, and why, where this version has no such runner, or it failed."""
        case = CASES[name]
        options = [*case.options, *self.tokens]
        if "--runner" in self._help:
            options += ["--runner", case.runner]
        job = Job.of(_config(options), shape_config(case.shape), device=self.device, runner=case.runner)  # type: ignore[arg-type]
        estimate = Estimate.of(job, Machine(host=0, output=0, temporary=0))
        stages = {stage.what: {part.what: part.size for part in stage.parts} for stage in estimate.needs.stages}
        found = Measured(
            shape=case.shape,
            runner=case.runner,
            command=f"export {' '.join(options)}",
            weights=weights(job),
            largest_layer=largest_layer(job),
            limit=LIMITS[case.limit](job, activations(stages)),
            limit_of=case.limit,
            estimate=estimate.needs.size("host"),
            device_estimate=estimate.needs.size("device") or None,
        )
        if case.runner != "whole" and "--runner" not in self._help:
            return replace(found, skipped=f"this version has no --runner {case.runner}")
        return self._run(found, case, options)

    def _run(self, found: Measured, case: Case, options: Sequence[str]) -> Measured:
        given = [*COMMAND, "-m", str(self._model(case.shape)), "--dataset", str(self.text), "--device", self.device]
        with _output(self.folder) as output:
            try:
                before = peak_of([*given, *options, "--dry-run", "--ignore-estimate", output], self.device)
                used = peak_of([*given, *options, output], self.device)
            except RuntimeError as error:
                return replace(found, skipped=f"failed: {error}")
        return replace(
            found,
            resident=used.resident,
            libraries=before.resident,
            device=used.device,
            seconds=round(used.seconds, 1),
        )

    def _model(self, shape: str) -> Path:
        folder = self.folder / shape
        if not folder.exists():
            write_dummy(Dummy(shape, shape_config(shape)), folder)
        return folder


@contextmanager
def _output(folder: Path) -> Iterator[str]:
    with tempfile.TemporaryDirectory(dir=folder) as inner:
        yield str(Path(inner) / "pruned")


def _config(options: Sequence[str]) -> GRASPConfig:
    """The recipe of options that are given as words."""
    pairs = zip(options[::2], options[1::2], strict=True)
    values = {name.removeprefix("--").replace("-", "_"): value for name, value in pairs}
    return GRASPConfig(**{name: value for name, value in values.items() if name != "runner"})


def results_table(cases: Mapping[str, Measured]) -> str:
    """Markdown: measured beside estimated and allowed, GiB."""
    lines = [
        "| case | shape | peak | of which libraries | estimate with them | weights | largest layer | limit | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, case in cases.items():
        fixed = [_gib(case.weights), _gib(case.largest_layer), f"{_gib(case.limit)} ({case.limit_of})"]
        if case.resident is None or case.libraries is None:
            cells = ["", "", f"{_gib(case.estimate)} without", *fixed, case.skipped or ""]
        else:
            estimate = case.estimate + case.libraries
            verdict = "within" if case.resident <= case.limit else "**above**"
            off = f"{_gib(estimate)} ({estimate / case.resident - 1:+.0%})"
            cells = [_gib(case.resident), _gib(case.libraries), off, *fixed, verdict]
        lines.append(f"| {name} | {case.shape} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


MODELS = {
    "LLaMA-2-7B": "llama-2-7b",
    "LLaMA-3-8B": "llama-3.1-8b",
    "LLaMA-2-13B": "llama-2-13b",
    "LLaMA-2-70B": "llama-2-70b",
}
CARDS = (24, 40, 80)
CONTEXT = 6 * GIB // 10
"""What CUDA takes of a card before anything is computed."""
RECIPES: dict[str, dict[str, object]] = {
    "default, ρ = 0.5": {},
    "default, ρ = 0.8": {"keep_ratio": 0.8},
    "gates alone": {"compensation": "none"},
    "fasp": {"method": "fasp"},
    "default, recover lora": {"recover": "lora"},
    "default, recover distill": {"recover": "distill"},
}


def ways(recipe: Mapping[str, object], shape: str) -> Iterator[tuple[str, Job]]:
    """Ways to run a recipe on a GPU, those first that are fastest."""
    config = GRASPConfig(**recipe)
    model = shape_config(shape)
    yield "whole", Job.of(config, model, device="cuda")
    again = config.model_copy(update={"gradient_checkpointing": True})
    yield "whole, recomputing", Job.of(again, model, device="cuda")
    for runner in known_runners(Job.of(config, model, device="cuda"), Machine(0, 0, 0))[1:]:
        yield runner, Job.of(again if runner == "offloaded" else config, model, device="cuda", runner=runner)


def cards_table() -> str:
    """Markdown: for every model, recipe and card the first way that fits, with its peaks on the card and the host."""
    lines = [f"| model | recipe | {' | '.join(f'{card} GB' for card in CARDS)} |", "|---" * (2 + len(CARDS)) + "|"]
    for model, shape in MODELS.items():
        for name, recipe in RECIPES.items():
            found = [(way, Estimate.of(job, Machine(0, 0, 0)).needs) for way, job in ways(recipe, shape)]
            cells = []
            for card in CARDS:
                fits = ((way, needs) for way, needs in found if needs.size("device") <= card * GIB - CONTEXT)
                way, needs = next(fits, ("no", None))
                host = 0 if needs is None else needs.size("host")
                beside = f" + {host / GIB:.0f}" if host >= GIB else ""
                cells.append("no" if needs is None else f"{way}: {needs.size('device') / GIB:.1f}{beside}")
            lines.append(f"| {model} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _gib(size: int) -> str:
    return f"{size / GIB:.2f}"


def parse() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=[*CASES], metavar="NAME", help=", ".join(CASES))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/memory.json"))
    parser.add_argument("--folder", type=Path, help="for the models, which then stay there; by default a temporary one")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--num-samples", type=int, default=2, help="calibration sequences")
    parser.add_argument("--seq-len", type=int, default=32, help="tokens in each of them")
    parser.add_argument("--held-out", type=int, default=1, help="sequences that choices are judged on")
    parser.add_argument("--table", action="store_true", help="print what fits on which card, and measure nothing")
    return parser.parse_args()


def main() -> None:
    """Measure the cases, each written when it is done."""
    args = parse()
    if args.table:
        print(cards_table(), end="")
        return
    tokens = ["--num-samples", str(args.num_samples), "--seq-len", str(args.seq_len), "--held-out", str(args.held_out)]
    known = dict(MemoryReport.read(args.output).cases) if args.output.exists() else {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        bench = Bench(folder, args.device, tokens)
        for name in args.cases:
            known[name] = bench.measured(name)
            cases = {each: known[each] for each in CASES if each in known}
            args.output.parent.mkdir(parents=True, exist_ok=True)
            write_json(args.output, MemoryReport(installed_versions(), cases).to_dict())
            write_file(args.output.with_suffix(".md"), results_table(cases).encode())
            print(json.dumps({name: known[name].to_dict()}), flush=True)


if __name__ == "__main__":
    main()
