"""`optimum-cli grasprune evaluate`: perplexity and tasks, the dense model beside the pruned one."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from optimum.commands.base import CommandInfo

from .base import Subcommand, add_example, add_model_options, declare_late, module_for_plots

if TYPE_CHECKING:
    from types import ModuleType

    from optimum_grasprune.config import EvaluationOptions
    from optimum_grasprune.evaluation.asked import Asked
    from optimum_grasprune.export.outputs import Source


class EvaluateCommand(Subcommand):
    """Measure perplexity on non-overlapping windows, accuracy in tasks, and what is recalled of a long text."""

    COMMAND = CommandInfo(name="evaluate", help="Measure perplexity and accuracy in tasks, dense beside pruned.")

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        """Declare the options."""
        add_example(
            parser,
            "optimum-cli grasprune evaluate -m ./pruned-llama --dense ./llama --dataset wikitext2 --dataset-split test"
            "\n"
            "  optimum-cli grasprune evaluate -m ./pruned-llama --dense ./llama --tasks paper\n"
            "  optimum-cli grasprune evaluate -m ./pruned-llama --dense ./llama --dataset novels.txt --by-position "
            "--needles novels.txt --plot long.png",
        )
        declare_late(parser, _declare)

    def sources(self) -> list[Source]:
        """The models, the corpora and the files of tasks."""
        from optimum_grasprune.export.outputs import corpora, local, models

        args = self.args
        return [
            *models("a model that is measured", *args.model, args.dense),
            *corpora("the corpus", args.dataset, args.needles, *args.ppl or ()),
            *local("the folder of task files", args.include_path),
            *local("the data of tasks", args.task_data),
        ]

    def execute(self) -> None:
        """Measure each model in the same, then print a table."""
        from optimum_grasprune.config import EvaluationOptions
        from optimum_grasprune.config.flags import given
        from optimum_grasprune.evaluation.models import evaluate
        from optimum_grasprune.report import print_table

        options = EvaluationOptions(**given(self.args, EvaluationOptions.model_fields))
        dense = [self.args.dense] if self.args.dense else []
        sources = dense + self.args.model
        pictures = self._checked_picture()
        if (asked := self._asked(options, sources[0])) is not None:
            self._report(sources, asked, pictures)
            return
        result = evaluate(sources, options, self.source_options(*sources))
        columns = ("model", "parameters", "perplexity", "÷ dense")
        print_table("Perplexity", columns, result.rows(beside_first=bool(dense)), result.footer())
        self.write_result(result.to_dict())

    def _asked(self, options: EvaluationOptions, model: str) -> Asked | None:
        from optimum_grasprune.config import BackendOptions, NeedleOptions, TaskOptions
        from optimum_grasprune.config.flags import given
        from optimum_grasprune.evaluation.asked import read_asked

        tasks = TaskOptions(**given(self.args, TaskOptions.model_fields))
        backend = BackendOptions(**given(self.args, BackendOptions.model_fields))
        needles = NeedleOptions(**given(self.args, NeedleOptions.model_fields))
        return read_asked(options, tasks, backend, needles, self.args.ppl or [], model)

    def _checked_picture(self) -> ModuleType | None:
        """What draws for `--plot`; None where that is not given. OptionError, GraspruneError."""
        from optimum_grasprune.errors import OptionError
        from optimum_grasprune.export.outputs import check_result_file

        if (file := self.args.plot) is None:
            return None
        if not (self.args.by_position or self.args.needles):
            raise OptionError("plot", file, "is of use only with --by-position or --needles")
        if not file.endswith((".png", ".svg")):
            raise OptionError("plot", file, "should end in .png or .svg")
        check_result_file(file, self.sources(), option="plot")
        return module_for_plots("optimum_grasprune.report.long_context", "leave out --plot")

    def _report(self, sources: Sequence[str], asked: Asked, pictures: ModuleType | None) -> None:
        from optimum_grasprune.evaluation.report import report
        from optimum_grasprune.evaluation.tables import tables
        from optimum_grasprune.report import print_table

        result = report(sources, asked, self.source_options(*sources), beside_first=bool(self.args.dense))
        for table in tables(result):
            print_table(table.title, table.columns, table.rows, table.footer)
        if pictures is not None:
            pictures.write_long_context(self.args.plot, result)
        self.write_result(result.to_dict())


def _declare(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> None:
    from optimum_grasprune.config import BackendOptions, EvaluationOptions, NeedleOptions, TaskOptions
    from optimum_grasprune.config.flags import add_options

    required = parser.add_argument_group("Required arguments")
    required.add_argument("-m", "--model", required=True, nargs="+", help="model folders or Hugging Face names")
    optional = parser.add_argument_group("Optional arguments")
    optional.add_argument("--dense", metavar="MODEL", help="the model to compare with")
    add_model_options(optional)
    tasks = parser.add_argument_group("Accuracy in tasks of lm-evaluation-harness")
    add_options(tasks, TaskOptions)
    add_options(tasks, BackendOptions)
    perplexity = parser.add_argument_group("Perplexity, which is measured alone where no tasks are named")
    add_options(perplexity, EvaluationOptions)
    perplexity.add_argument(
        "--ppl",
        metavar="NAME=PATH[SLICE]",
        nargs="+",
        help="several corpora in place of --dataset, as in 'stories=stories.txt[90%%:]' or wikitext=wikitext2[test]",
    )
    needles = parser.add_argument_group("Numbers hidden in a long text")
    add_options(needles, NeedleOptions)
    needles.add_argument(
        "--plot",
        metavar="FILE",
        help="draw perplexity by position, and the needles found, into this file, .png or .svg; needs matplotlib",
    )
