"""`optimum-cli grasprune compare`: one model, several methods and ratios, one table and plots."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimum.commands.base import CommandInfo

from .base import (
    Subcommand,
    add_example,
    add_model_options,
    declare_late,
    is_number,
    module_for_plots,
)

if TYPE_CHECKING:
    from types import ModuleType

    from optimum_grasprune.comparison import Comparison, ComparisonResult
    from optimum_grasprune.export.outputs import Source

OF_A_CELL = ("method", "keep_ratio")
"""Fields that `--methods` and `--keep-ratios` set, cell by cell."""


class CompareCommand(Subcommand):
    """Prune one model by several methods at several ratios on the same data and seed, and measure what it cost."""

    COMMAND = CommandInfo(name="compare", help="Compare pruning methods at several ratios: tables and plots.")

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        """Declare the options."""
        add_example(
            parser,
            "optimum-cli grasprune compare -m ./llama --methods default flap fasp+none statistical:unstructured \\\n"
            "      --keep-ratios 0.8 0.5 --dataset corpus.txt --evaluate 'held out=held-out.txt' ./comparison",
        )
        declare_late(parser, _declare)

    def execute(self) -> None:
        """Check everything, run what is not finished, write tables, plots and the page."""
        from optimum_grasprune.comparison import Shard
        from optimum_grasprune.comparison.claims import ended_by_sigterm
        from optimum_grasprune.serving.cells import read_benchmark, with_speeds

        shard = None if self.args.shard is None else Shard.parse(self.args.shard)
        output = Path(self.output_among(*filter(None, [self.args.last_list]), is_value=_is_value))
        self.check_outputs(str(output))
        plots = None if self.args.no_plot else module_for_plots("optimum_grasprune.comparison.plots")
        benchmark = None
        if (path := self.args.benchmark) is not None:
            benchmark = read_benchmark(path, self.args.model, **self.source_options(self.args.model))
        comparison = self._comparison(output)
        with nullcontext() if shard is None else ended_by_sigterm():
            result = comparison.run(lambda line: print(line, flush=True), shard)
            if benchmark is not None:
                result = with_speeds(result, benchmark)
            self._report(result, output, plots, whole=len(result.cells) == len(comparison.cells))

    def _report(self, result: ComparisonResult, output: Path, plots: ModuleType | None, *, whole: bool) -> None:
        """Write tables, plots and the page, unless other processes have cells to finish; print what there is."""
        from optimum_grasprune.comparison import short_table, write_page, write_tables
        from optimum_grasprune.errors import GraspruneError
        from optimum_grasprune.report import print_table

        if whole:
            write_tables(result, output)
            write_page(result, output, [] if plots is None else plots.write_plots(result, output))
            self.write_result(result.to_dict())
        where = f"tables and cells are in {output}" if whole else f"the cells so far, in {output}"
        print_table("Comparison", *short_table(result), f"measured in {result.precision}; {where}")
        if failed := result.failed():
            names = ", ".join(cell.name for cell in failed)
            raise GraspruneError(f"{len(failed)} of {len(result.cells)} cells failed: {names} ({failed[0].error})")

    def sources(self) -> list[Source]:
        """The model and the corpora that it is calibrated and measured on."""
        from optimum_grasprune.export.outputs import corpora, local, models

        args = self.args
        return [
            *models("the model that is to be pruned", args.model),
            *corpora("the corpus", args.dataset, *args.evaluate or ()),
            *corpora("the text that is watched", args.recover_watch),
            *local("the folder of task files", args.include_path),
            *local("the data of tasks", args.task_data),
            *local("the benchmark", args.benchmark),
        ]

    def _comparison(self, output: Path) -> Comparison:
        from optimum_grasprune.comparison import Comparison, cells_of, evaluation_windows, read_corpora
        from optimum_grasprune.config import TaskOptions
        from optimum_grasprune.config.flags import given
        from optimum_grasprune.evaluation.tasks import read_tasks

        args = self.args
        cells = cells_of(args.methods, args.keep_ratios, given(args, args.config_fields))
        config = cells[0].config
        corpora = read_corpora(args.evaluate or ["builtin=builtin[test]"], config.text_column)
        window, limits = evaluation_windows(args.eval_seq_len, args.eval_samples, len(corpora))
        return Comparison(
            args.model,
            cells,
            corpora,
            output,
            window=window,
            limits=limits,
            device=config.device,
            dtype=config.dtype,
            share_gates=args.share_gates,
            tasks=read_tasks(TaskOptions(**given(args, TaskOptions.model_fields)), args.model),
            **self.source_options(args.model),
        )


def _declare(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> None:
    from optimum_grasprune.config import GRASPConfig, TaskOptions
    from optimum_grasprune.config.flags import add_advanced_options, add_everyday_options, add_options, add_own_options

    required = parser.add_argument_group("Required arguments")
    required.add_argument("-m", "--model", required=True, help="model folder or Hugging Face name")
    required.add_argument(
        "--methods",
        metavar="M",
        nargs="+",
        required=True,
        action=_Extend,
        help="recipes (default, paper, …) or methods (flap, fasp, …: the default recipe with that method), each "
        "also as NAME+COMPENSATION, NAME:PATTERN or NAME@OPTION=VALUE,…; an unknown name lists all",
    )
    required.add_argument(
        "--keep-ratios", metavar="R", nargs="+", required=True, action=_Extend, help="keep ratios of every method"
    )
    required.add_argument(
        "output", metavar="OUTPUT", nargs="?", help="folder for the results; cells that it has are not run again"
    )
    evaluation = parser.add_argument_group("Evaluation")
    evaluation.add_argument(
        "--evaluate",
        metavar="NAME=PATH[SLICE]",
        nargs="+",
        action=_Extend,
        help="corpora to measure perplexity on, as in 'stories=stories.txt[90%%:]' or wikitext=wikitext2[test]; "
        "builtin's held-out part by default",
    )
    evaluation.add_argument(
        "--eval-seq-len", metavar="N", help="tokens in a window; 512 by default, or as many as the model reads"
    )
    evaluation.add_argument(
        "--eval-samples",
        metavar="N[,N…]",
        help="windows from the start of each corpus, one number for all or one for each; all by default",
    )
    add_options(parser.add_argument_group("Accuracy in tasks of lm-evaluation-harness"), TaskOptions)
    optional = parser.add_argument_group("Optional arguments, of all methods")
    add_everyday_options(optional, leave_out=OF_A_CELL)
    optional.add_argument(
        "--share-gates",
        action="store_true",
        help="train gates, and what makes up for the cut, once for all ratios of a method, as export does for several, "
        "not once for each",
    )
    optional.add_argument(
        "--shard",
        metavar="I/N",
        help="run the I-th of N shares of the cells, then what is left of the others: N processes with the same "
        "command and I from 1 to N do one comparison together, on one machine or on several that all see OUTPUT",
    )
    optional.add_argument(
        "--benchmark",
        metavar="FILE",
        help="a benchmark.json of the same dense model: the tokens/s of its checkpoints stand beside cells of the same "
        "widths",
    )
    optional.add_argument("--no-plot", action="store_true", help="write tables only; needs no matplotlib")
    add_model_options(optional)
    own = add_own_options(parser, arguments, method="methods")
    add_advanced_options(parser, leave_out=OF_A_CELL)
    common = [name for name in GRASPConfig.model_fields if name not in OF_A_CELL]
    parser.set_defaults(config_fields=(*common, *own), last_list=None)


class _Extend(argparse.Action):
    """Adds values to a list, and remembers which list was given last."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, [*(getattr(namespace, self.dest, None) or []), *values])
        namespace.last_list = self.dest


def _is_value(option: str, text: str) -> bool:
    """Whether a text can only be a value of the list option, and not the folder OUTPUT."""
    if option == "evaluate":
        return "=" in text
    if option == "keep_ratios":
        return is_number(text)
    from optimum_grasprune.config import RECIPES
    from optimum_grasprune.methods import method_names

    return re.split("[+:@]", text)[0] in {*RECIPES, *method_names()}
