"""`optimum-cli grasprune evaluate`: perplexity, the dense model beside the pruned one."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from optimum.commands.base import CommandInfo

from .base import Subcommand, add_example, add_model_options, declare_late

if TYPE_CHECKING:
    from optimum_grasprune.export.outputs import Source


class EvaluateCommand(Subcommand):
    """Measure perplexity in fp32 on non-overlapping windows."""

    COMMAND = CommandInfo(name="evaluate", help="Measure perplexity, dense beside pruned.")

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        """Declare the options."""
        add_example(
            parser,
            "optimum-cli grasprune evaluate -m ./pruned-llama --dense ./llama --dataset wikitext2 --dataset-split test",
        )
        declare_late(parser, _declare)

    def sources(self) -> list[Source]:
        """The models and the corpus."""
        from optimum_grasprune.export.outputs import corpora, models

        args = self.args
        return [*models("a model that is measured", *args.model, args.dense), *corpora("the corpus", args.dataset)]

    def execute(self) -> None:
        """Measure each model on the same text, then print one table."""
        from optimum_grasprune.config import EvaluationOptions
        from optimum_grasprune.config.flags import given
        from optimum_grasprune.evaluation.models import evaluate
        from optimum_grasprune.report import print_table

        options = EvaluationOptions(**given(self.args, EvaluationOptions.model_fields))
        dense = [self.args.dense] if self.args.dense else []
        sources = dense + self.args.model
        result = evaluate(sources, options, self.source_options(*sources))
        columns = ("model", "parameters", "perplexity", "÷ dense")
        print_table("Perplexity", columns, result.rows(beside_first=bool(dense)), result.footer())
        self.write_result(result.to_dict())


def _declare(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> None:
    from optimum_grasprune.config import EvaluationOptions
    from optimum_grasprune.config.flags import add_options

    required = parser.add_argument_group("Required arguments")
    required.add_argument("-m", "--model", required=True, nargs="+", help="model folders or Hugging Face names")
    optional = parser.add_argument_group("Optional arguments")
    optional.add_argument("--dense", metavar="MODEL", help="the model to compare with")
    add_options(optional, EvaluationOptions)
    add_model_options(optional)
