"""`optimum-cli grasprune evaluate`: perplexity, the dense model beside the pruned one."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from optimum.commands.base import CommandInfo

from .base import Subcommand, add_bos_option, add_example, add_model_options, checked_config

if TYPE_CHECKING:
    from optimum_grasprune.outputs import Source


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
        required = parser.add_argument_group("Required arguments")
        required.add_argument("-m", "--model", required=True, nargs="+", help="model folders or Hugging Face names")
        optional = parser.add_argument_group("Optional arguments")
        optional.add_argument("--dense", metavar="MODEL", help="the model to compare with")
        optional.add_argument(
            "--dataset", metavar="PATH|NAME", help="evaluation corpus; builtin's held-out part by default"
        )
        optional.add_argument(
            "--dataset-split", metavar="SPLIT", help="split or slice of it: test, or [90%%:] of a file"
        )
        optional.add_argument("--text-column", metavar="NAME", help="column that holds the text, where it is a table")
        optional.add_argument(
            "--seq-len", metavar="N", help="tokens in a window; 512 by default, or as many as all models read"
        )
        optional.add_argument("--num-samples", metavar="N", help="windows to score, from the start; all by default")
        optional.add_argument("--batch-size", metavar="N", help="windows scored at once; 1 by default")
        add_bos_option(optional)
        optional.add_argument("--device", metavar="DEVICE", help="torch device, as in cpu or cuda:0; auto by default")
        add_model_options(optional, dtype=False)

    def sources(self) -> list[Source]:
        """The models and the corpus."""
        from optimum_grasprune.outputs import corpora, models

        args = self.args
        return [*models("a model that is measured", *args.model, args.dense), *corpora("the corpus", args.dataset)]

    def execute(self) -> None:
        """Measure each model on the same text, then print one table."""
        from optimum_grasprune.corpora import load_corpus
        from optimum_grasprune.evaluation import perplexity_of
        from optimum_grasprune.report import print_table

        args = self.args
        if args.dataset is None and args.dataset_split is None:
            args.dataset_split = "test"  # the held-out part of the builtin corpus
        config = checked_config(
            dataset=args.dataset,
            dataset_split=args.dataset_split,
            text_column=args.text_column,
            seq_len=args.seq_len,
            num_samples=args.num_samples,
            batch_size=args.batch_size,
            bos=args.bos,
            device=args.device,
        )
        corpus = load_corpus(config.dataset, config.dataset_split, config.text_column)
        sources = ([args.dense] if args.dense else []) + args.model
        window = self._window(sources, config.seq_len)
        results = [self._measure(source, corpus, config, window) for source in sources]
        rows = [
            (
                result["model"],
                f"{result['parameters']:,}",
                _shown(perplexity_of(result["loss"])),
                _shown(perplexity_of(result["loss"] - results[0]["loss"])) if args.dense else "",
            )
            for result in results
        ]
        first = results[0]
        windows = f"{first['windows']} windows of {first['window']} tokens"
        footer = f"{corpus.source} {corpus.split or ''}: {windows}, {first['tokens']:,} predictions, fp32"
        print_table("Perplexity", ("model", "parameters", "perplexity", "÷ dense"), rows, footer)
        self.write_result({"corpus": corpus.describe(), "models": results})

    def _window(self, sources: list[str], asked: int | None) -> int:
        """Tokens in a window, the same for all models; looks at all of them before one is measured."""
        from optimum_grasprune.evaluation import EVALUATION_WINDOW
        from optimum_grasprune.families import family_of
        from optimum_grasprune.loading import common_window, load_config

        options = self.source_options(*sources)
        configs = {f"the model {source}": load_config(source, **options) for source in sources}
        for config in configs.values():
            family_of(config)
        return common_window(configs, asked, EVALUATION_WINDOW, "seq_len")

    def _measure(self, source: str, corpus: Any, config: Any, window: int) -> dict[str, Any]:
        from optimum_grasprune.corpora import tokenize
        from optimum_grasprune.evaluation import perplexity
        from optimum_grasprune.loading import count_parameters, load_model, load_tokenizer

        options = self.source_options(*self.args.model, *filter(None, [self.args.dense]))
        model = load_model(source, dtype="float32", device=config.device, **options)
        tokenizer = load_tokenizer(source, **options)
        tokenized = tokenize(corpus, tokenizer, model.config.vocab_size, bos=config.bos)
        result = perplexity(model, tokenized.windows(window, config.num_samples), config.batch_size)
        return {
            "model": source,
            "parameters": count_parameters(model),
            "first_tokens": list(tokenized.first),
            **result.to_dict(),
        }


def _shown(value: float) -> str:
    return f"{value:.3f}" if value < 1e9 else f"{value:.3e}"
