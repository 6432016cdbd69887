"""`optimum-cli grasprune benchmark`: pruned checkpoints beside the dense one, on the real engine."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimum.commands.base import CommandInfo

from .base import Subcommand, add_example, add_model_options, is_number, module_for_plots

if TYPE_CHECKING:
    from optimum_grasprune.benchmark.checkpoints import Checkpoint
    from optimum_grasprune.benchmark.engine import Engine
    from optimum_grasprune.benchmark.workload import Lengths, Point
    from optimum_grasprune.outputs import Source

MODES = ("serve", "long-context", "offline", "generate")
CONCURRENCY = (1, 4, 16)
LENGTHS = ("128:64", "512:32")
LONG_CONTEXT = 4096
"""Tokens of a sequence in the long-context mode, where the models read as many."""


class BenchmarkCommand(Subcommand):
    """Measure throughput, latency and memory of pruned checkpoints beside the dense one."""

    COMMAND = CommandInfo(name="benchmark", help="Measure speed and memory, dense beside pruned, on the real engine.")

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        """Declare the options."""
        add_example(
            parser,
            "optimum-cli grasprune benchmark --dense ./llama --pruned ./pruned-llama --pruned uniform=./uniform \\\n"
            "      --concurrency 1 4 16 --lengths 128:64 512:32 --kv-cache-memory 4 ./benchmark",
        )
        required = parser.add_argument_group("Required arguments")
        required.add_argument("--dense", metavar="MODEL", required=True, help="the dense model: folder or hub name")
        required.add_argument(
            "--pruned",
            metavar="[NAME=]MODEL",
            required=True,
            action="append",
            help="a checkpoint to measure beside it; may be given several times",
        )
        required.add_argument("output", metavar="OUTPUT", nargs="?", help="folder for results, plots and logs")
        _add_workload_options(parser.add_argument_group("Workload"))
        _add_engine_options(parser.add_argument_group("Engine"))
        optional = parser.add_argument_group("Optional arguments")
        optional.add_argument("--seed", metavar="N", default="0", help="seed of the requests; 0 by default")
        optional.add_argument("--no-plot", action="store_true", help="write tables only; needs no matplotlib")
        optional.add_argument("--dtype", metavar="DTYPE", help="auto, float32, bfloat16 or float16")
        optional.add_argument("--device", metavar="DEVICE", help="torch device, as in cpu or cuda:0; auto by default")
        add_model_options(optional)

    def execute(self) -> None:
        """Check everything, measure, write tables and plots."""
        from optimum_grasprune.benchmark.checkpoints import read_checkpoints
        from optimum_grasprune.benchmark.page import burst_lines, overflow_lines, short_memory_table, short_table
        from optimum_grasprune.benchmark.processes import terminated_cleanly
        from optimum_grasprune.benchmark.results import check_folder, write_results
        from optimum_grasprune.report import print_table

        args = self.args
        output = Path(self._output())
        self.check_outputs(str(output))
        self._check_mode()
        plots = None if args.no_plot else module_for_plots("optimum_grasprune.benchmark.figures")
        checkpoints = read_checkpoints(args.dense, args.pruned, **self._read_as())
        points, memory = self._workload(checkpoints)
        options = self._options(memory)
        check_folder(output)
        with terminated_cleanly():
            measured = self._measured(checkpoints, points, options, output)
        result = self._result(measured, checkpoints, points, options)
        write_results(result, output)
        if plots is not None:
            plots.write_plots(result, output)
        print_table("Memory", *short_memory_table(result))
        footer = f"all quantities are in {output / 'benchmark.md'}"
        print_table("Speed, medians; ratios within a repetition, lowest–highest", *short_table(result), footer)
        for line in (*overflow_lines(result), *burst_lines(result)):
            print(line)
        self.write_result(result)

    def sources(self) -> list[Source]:
        """The checkpoints and the prompts."""
        from optimum_grasprune.benchmark.checkpoints import named
        from optimum_grasprune.outputs import local, models

        args = self.args
        return [
            *models("the dense model", args.dense),
            *models("a checkpoint that is measured", *(named(entry)[1] for entry in args.pruned)),
            *local("the file of prompts", args.prompts),
        ]

    def _read_as(self) -> dict[str, Any]:
        from optimum_grasprune.benchmark.checkpoints import named

        return self.source_options(self.args.dense, *(named(entry)[1] for entry in self.args.pruned))

    def _output(self) -> str:
        """OUTPUT, which argparse takes for one more value where it follows a list of numbers or lengths."""
        args = self.args
        for values in (args.concurrency, args.lengths):
            if args.output is None and values and len(values) > 1 and not is_number(values[-1].replace(":", "", 1)):
                args.output = values.pop()
        if args.output is None:
            self.fail("the following arguments are required: OUTPUT")
        return args.output

    def _check_mode(self) -> None:
        from optimum_grasprune.benchmark.server import check_vllm
        from optimum_grasprune.errors import GraspruneError, OptionError

        mode = self.args.mode
        if mode not in MODES:
            raise OptionError("mode", mode, f"no such mode; there are {', '.join(MODES)}")
        for option in _WITHOUT[mode]:
            value = getattr(self.args, option)
            if value is True:
                raise GraspruneError(f"--{option}: has no meaning in --mode {mode}")
            if value not in (None, False):
                raise OptionError(option, value, f"has no meaning in --mode {mode}")
        if mode != "generate":
            check_vllm()

    def _workload(self, checkpoints: list[Checkpoint]) -> tuple[list[Point], int | None]:
        """The points to measure, and the bytes of the KV cache; None for what vLLM finds."""
        from optimum_grasprune.benchmark.workload import check_prompts, parse_lengths, positive, sweep

        args = self.args
        lengths = [parse_lengths(text) for text in args.lengths or ()]
        concurrencies = [positive("concurrency", text) for text in args.concurrency or ()]
        requests = None if args.num_prompts is None else positive("num_prompts", args.num_prompts)
        if args.mode == "long-context":
            return self._overflow(checkpoints, lengths, concurrencies, requests)
        prompts = None
        if args.prompts is not None:
            check_prompts(Path(args.prompts))
            prompts = (Path(args.prompts).resolve(), positive("output_len", args.output_len or 128, least=2))
        if not lengths and prompts is None:
            longest = min(item.longest for item in checkpoints)
            lengths = [asked for asked in map(parse_lengths, LENGTHS) if asked.total <= longest]
        _check_lengths(checkpoints, lengths)
        points = sweep(lengths, concurrencies or CONCURRENCY, requests=requests, prompts=prompts)
        return points, None if args.mode == "generate" else self._memory() or _default_memory()

    def _overflow(
        self, checkpoints: list[Checkpoint], lengths: list[Lengths], concurrencies: list[int], requests: int | None
    ) -> tuple[list[Point], int]:
        """The one point of the long-context mode, and memory that only the pruned models' caches make do with."""
        from optimum_grasprune.benchmark.engine import served_bytes
        from optimum_grasprune.benchmark.long_context import overflowing
        from optimum_grasprune.benchmark.workload import Lengths, Point
        from optimum_grasprune.errors import OptionError

        for option, values in (("lengths", lengths), ("concurrency", concurrencies)):
            if len(values) > 1:
                raise OptionError(option, " ".join(getattr(self.args, option)), "--mode long-context takes only one")
        half = min(LONG_CONTEXT, *(item.longest for item in checkpoints)) // 2
        (asked,) = lengths or [Lengths(half, half)]
        _check_lengths(checkpoints, [asked])
        _, kv_bytes = served_bytes(self._flags(), checkpoints[0].dtype)
        dense, *pruned = (item.shape.kv_width * kv_bytes for item in checkpoints)
        given = concurrencies[0] if concurrencies else None
        concurrency, memory = overflowing(dense, pruned, asked.total, given, self._memory())
        return [Point(asked, concurrency, requests or 2 * concurrency)], memory

    def _memory(self) -> int | None:
        from optimum_grasprune.benchmark.engine import GIB
        from optimum_grasprune.errors import OptionError

        text = self.args.kv_cache_memory
        if text is None:
            return None
        if not is_number(text) or not 0 < float(text) < float("inf"):
            raise OptionError("kv_cache_memory", text, "should be a number of GiB above 0")
        return int(float(text) * GIB)

    def _flags(self) -> list[str]:
        from optimum_grasprune.errors import OptionError

        given = self.args.serve_flags or ""
        try:
            flags = shlex.split(given)
        except ValueError as error:
            raise OptionError("serve_flags", given, str(error)) from None
        return [*(["--dtype", self.args.dtype] if self.args.dtype else []), *flags]

    def _options(self, memory: int | None) -> dict[str, Any]:
        from optimum_grasprune.benchmark.workload import positive

        args = self.args
        return {
            "repetitions": positive("repetitions", args.repetitions),
            "together": args.together,
            "seed": positive("seed", args.seed, least=0),
            "port": None if args.port is None else positive("port", args.port),
            "start_seconds": positive("start_timeout", args.start_timeout or 1800),
            "kv_cache_bytes": memory,
            "serve_flags": self._flags(),
            "dtype": args.dtype,
        }

    def _engine(self, options: dict[str, Any], points: list[Point]) -> Engine:
        from optimum_grasprune.benchmark.engine import engine_of

        flags = options["serve_flags"]
        if self.args.mode == "long-context":
            (point,) = points
            flags = ["--max-model-len", str(point.lengths.total), "--max-num-seqs", str(point.concurrency), *flags]
        return engine_of(flags, kv_bytes=options["kv_cache_bytes"], **self._read_as())

    def _measured(
        self, checkpoints: list[Checkpoint], points: list[Point], options: dict[str, Any], output: Path
    ) -> dict[str, Any]:
        """What the mode measures."""
        from optimum_grasprune.benchmark.generation import Generation, run_generation
        from optimum_grasprune.benchmark.offline import run_offline
        from optimum_grasprune.benchmark.results import LOGS_FOLDER
        from optimum_grasprune.benchmark.serving import Serving, run_serving

        args = self.args
        if args.mode == "generate":
            generation = Generation(
                repetitions=options["repetitions"],
                together=args.together,
                dtype=args.dtype or "auto",
                device=args.device or "auto",
                seed=options["seed"],
                **self._read_as(),
            )
            return run_generation(generation, checkpoints, points, _announce)
        serving = Serving(
            engine=self._engine(options, points),
            logs=output / LOGS_FOLDER,
            repetitions=options["repetitions"],
            together=args.together,
            port=options["port"],
            start_seconds=options["start_seconds"],
            seed=options["seed"],
            **self._read_as(),
        )
        return (run_offline if args.mode == "offline" else run_serving)(serving, checkpoints, points, _announce)

    def _result(
        self, measured: dict[str, Any], checkpoints: list[Checkpoint], points: list[Point], options: dict[str, Any]
    ) -> dict[str, Any]:
        from optimum_grasprune.benchmark.engine import served_bytes
        from optimum_grasprune.benchmark.results import assembled

        sizes = served_bytes(options["serve_flags"], checkpoints[0].dtype)
        command = shlex.join(("optimum-cli", *sys.argv[1:]))
        return assembled(self.args.mode, measured, checkpoints, points, options, command=command, element_sizes=sizes)


# Options that a mode does not know.
_OF_SERVERS = ("port", "start_timeout", "prompts", "output_len")
_WITHOUT = {
    "serve": ("device",),
    "long-context": ("device", "prompts", "output_len"),
    "offline": ("device", "together", *_OF_SERVERS),
    "generate": ("kv_cache_memory", "serve_flags", "num_prompts", *_OF_SERVERS),
}


def _add_workload_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--mode",
        metavar="MODE",
        default="serve",
        help="serve: vllm serve; long-context: the same with more sequences than the dense KV cache holds; "
        "offline: vllm bench throughput and latency; generate: transformers alone. serve by default",
    )
    group.add_argument(
        "--concurrency",
        metavar="N",
        nargs="+",
        action="extend",
        help=f"requests at once, of generate and latency sequences in a batch; {' '.join(map(str, CONCURRENCY))} "
        "by default",
    )
    group.add_argument(
        "--lengths",
        metavar="PROMPT:OUTPUT",
        nargs="+",
        action="extend",
        help=f"tokens of a random prompt and tokens to generate; {' '.join(LENGTHS)} by default, as far as "
        "the models read so many",
    )
    group.add_argument("--prompts", metavar="FILE", help='also prompts of a jsonl file, a "prompt" on every line')
    group.add_argument("--output-len", metavar="N", help="tokens to generate for each of them; 128 by default")
    group.add_argument(
        "--num-prompts", metavar="N", help="requests at each point; by default 8 for each concurrent one, at least 16"
    )
    group.add_argument("--repetitions", metavar="N", default="3", help="of everything, interleaved; 3 by default")


def _add_engine_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--kv-cache-memory",
        metavar="GIB",
        help="memory of every checkpoint's KV cache, fractions too; by default what vLLM finds on a GPU, 1 on a CPU, "
        "and in long-context what the pruned checkpoints need",
    )
    group.add_argument(
        "--serve-flags", metavar="FLAGS", help="more flags for vLLM, in one word: --serve-flags='--enforce-eager'"
    )
    group.add_argument(
        "--together",
        action="store_true",
        help="keep all servers up, or all models loaded, and interleave at every point: fewer starts, more memory",
    )
    group.add_argument("--port", metavar="N", help="port of the server; a free one by default")
    group.add_argument(
        "--start-timeout", metavar="SECONDS", help="time that a server may take to be ready; 1800 by default"
    )


def _check_lengths(checkpoints: list[Checkpoint], lengths: list[Lengths]) -> None:
    from optimum_grasprune.errors import OptionError

    for item in checkpoints:
        for asked in lengths:
            if asked.total > item.longest:
                text = f"{asked.prompt}:{asked.output}"
                raise OptionError("lengths", text, f"the model {item.source} reads at most {item.longest} tokens")


def _default_memory() -> int | None:
    import torch

    from optimum_grasprune.benchmark.engine import kv_bytes_by_default

    return kv_bytes_by_default(on_cpu=not torch.accelerator.is_available())


def _announce(line: str) -> None:
    print(line, flush=True)
