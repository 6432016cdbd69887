"""`optimum-cli grasprune benchmark`: pruned checkpoints beside the dense one, on the real engine."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from optimum.commands.base import CommandInfo

from .base import Subcommand, add_example, add_model_options, is_number, module_for_plots
from .benchmark_options import OPTIONS

if TYPE_CHECKING:
    from optimum_grasprune.export.outputs import Source
    from optimum_grasprune.serving.asked import Asked


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
        for title, options in OPTIONS.items():
            group = parser.add_argument_group(title)
            for name, how in options.items():
                group.add_argument(name, **how)
        add_model_options(group)

    def execute(self) -> None:
        """Check everything, measure, write tables and plots."""
        from optimum_grasprune.report import print_table
        from optimum_grasprune.serving.measure import benchmark
        from optimum_grasprune.serving.page import (
            burst_lines,
            overflow_lines,
            short_memory_table,
            short_table,
            write_page,
        )
        from optimum_grasprune.serving.processes import terminated_cleanly
        from optimum_grasprune.serving.results import check_folder, write_results

        output = Path(self.output_among("concurrency", "lengths", is_value=_is_value))
        self.check_outputs(str(output))
        plots = None if self.args.no_plot else module_for_plots("optimum_grasprune.serving.figures")
        plan = self._asked().plan(output)
        check_folder(output)
        command = shlex.join(("optimum-cli", *sys.argv[1:]))
        with terminated_cleanly():
            result = benchmark(plan, command=command, announce=lambda line: print(line, flush=True))
        write_results(result, output)
        write_page(result, output)
        if plots is not None:
            plots.write_plots(result, output)
        print_table("Memory", *short_memory_table(result))
        footer = f"all quantities are in {output / 'benchmark.md'}"
        print_table("Speed, medians; ratios within a repetition, lowest–highest", *short_table(result), footer)
        for line in (*overflow_lines(result), *burst_lines(result)):
            print(line)
        self.write_result(result.to_dict())

    def sources(self) -> list[Source]:
        """The checkpoints and the prompts."""
        from optimum_grasprune.export.outputs import local, models
        from optimum_grasprune.serving.checkpoints import named

        args = self.args
        return [
            *models("the dense model", args.dense),
            *models("a checkpoint that is measured", *(named(entry)[1] for entry in args.pruned)),
            *local("the file of prompts", args.prompts),
        ]

    def _asked(self) -> Asked:
        from dataclasses import fields

        from optimum_grasprune.serving.asked import Asked

        return Asked(**{field.name: getattr(self.args, field.name) for field in fields(Asked)})


def _is_value(option: str, text: str) -> bool:
    """Whether a text is a number or a pair of lengths, and not the folder OUTPUT."""
    return is_number(text.replace(":", "", 1))
