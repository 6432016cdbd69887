"""`optimum-cli grasprune export`: the main job."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from optimum.commands.base import CommandInfo

from .base import (
    Subcommand,
    add_bos_option,
    add_example,
    add_field_options,
    add_model_options,
    chosen_options,
)

if TYPE_CHECKING:
    from optimum_grasprune.config import GRASPConfig
    from optimum_grasprune.outputs import Source
    from optimum_grasprune.pruner import GRASPPruner

# Name, metavar and help of the options that set a field of GRASPConfig. They are repeated here because reading them off
# the class would load pydantic at every start of optimum-cli; a test holds the two lists against each other. Values
# stay strings: GRASPConfig converts and checks them, so a bad one gives the same line as in Python.
RECIPE_OPTIONS = (
    ("method", "NAME", "how units are chosen: grasprune, fasp, flap, …; an unknown name lists all"),
    ("pattern", "NAME", "what is cut: units, or single weights as unstructured, 2:4 or 4:8"),
    ("allocation", "NAME", "uniform (the same share of every layer), global, or auto: the method's own"),
    ("compensation", "NAME", "none, scales, least_squares, both, bias, energy, or auto: the method's own"),
    (
        "dataset",
        "PATH|NAME",
        "calibration corpus: a text, jsonl, csv or parquet file, a folder, a Hugging Face dataset, builtin or sampled",
    ),
    ("dataset_split", "SPLIT", "split or slice of it: train, train[:90%%], or [:90%%] of a file"),
    ("text_column", "NAME", "column that holds the text or conversations, where the corpus is a table"),
    ("num_samples", "N", "calibration sequences"),
    ("seq_len", "N", "tokens in each"),
    ("held_out", "N", "further ones on which candidates and compensations are judged"),
    ("statistic_samples", "N", "sequences that statistics and least squares look at"),
    ("epochs", "N", "passes over them while gates are trained"),
    ("batch_size", "N", "sequences in one step"),
    ("learning_rate", "RATE", "of the gate scores; unless given, it grows with the cut"),
    ("schedule", "NAME", "course of the learning rates: cosine or constant"),
    ("temperature", "TAU", "of the gates' sigmoid"),
    ("start", "NAME", "gate scores at the start: zero or fisher"),
    ("start_rounds", "N", "times that Fisher information is measured while the budget shrinks"),
    ("budget_warmup", "SHARE", "of the training over which the budget shrinks from the whole model"),
    ("snapshots", "N", "moments of the training whose masks are candidates"),
    ("search_trials", "N", "per-layer widths that are tried on the true loss"),
    ("search_samples", "N", "sequences that each of them is measured on"),
    ("search_seconds", "SECONDS", "time limit of that search"),
    ("least_squares", "NAME", "how they take massive activations: robust, plain, or auto: the method's own"),
    (
        "damping",
        "FACTOR",
        "ridge of the least squares, in median (robust) or mean (plain) Gram diagonals",
    ),
    ("scale_samples", "N", "sequences that scales are trained on"),
    ("scale_epochs", "N", "passes over them"),
    ("restoration", "NAME", "inputs of the least squares: dense, sequential, or auto: the method's own"),
    ("scale_learning_rate", "RATE", "of the scales"),
    ("seed", "N", "seed of every random choice; on one machine's CPU the same seed gives the same checkpoint"),
)
BUDGET_OPTIONS = (
    ("keep_ratio", "RATIO", "share of the budgeted parameters that stays, above 0 and at most 1"),
    ("budget", "KIND", "what it is a share of: prunable (FFN and attention) or total parameters"),
    ("kv_keep_ratio", "RATIO", "second cap: share of the KV cache that may stay"),
    ("min_ffn_channels", "N", "FFN channels that each layer keeps at least"),
    ("min_kv_groups", "N", "KV heads that each layer keeps at least"),
    ("ffn_multiple_of", "N", "every FFN width is a multiple of this"),
    ("kv_multiple_of", "N", "every number of KV heads is a multiple of this"),
    ("tensor_parallel_size", "N", "tensor-parallel size to serve with"),
)
SWITCHES = ("gradient_checkpointing", "deterministic")
DETERMINISTIC_HELP = "the same seed gives the same checkpoint on one GPU too; slower there"
FIELDS = (*(name for name, _, _ in RECIPE_OPTIONS + BUDGET_OPTIONS), "bos", "dtype", "device")


def given_fields(args: argparse.Namespace, leave_out: tuple[str, ...] = ()) -> dict[str, Any]:
    """The fields of GRASPConfig that were given on the command line. leave_out: those that it has no option for."""
    options = chosen_options(args, tuple(name for name in FIELDS if name not in leave_out))
    return options | {name: True for name in SWITCHES if getattr(args, name)}


class ExportCommand(Subcommand):
    """Prune a model and save the smaller one."""

    COMMAND = CommandInfo(name="export", help="Prune a model and save the smaller dense checkpoint.")

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        """Declare the options."""
        add_example(
            parser, "optimum-cli grasprune export -m ./llama --keep-ratio 0.5 --dataset corpus.txt ./pruned-llama"
        )
        required = parser.add_argument_group("Required arguments")
        required.add_argument("-m", "--model", required=True, help="model folder or Hugging Face name")
        required.add_argument("output", metavar="OUTPUT", help="folder for the pruned checkpoint")
        add_field_options(parser.add_argument_group("Budget"), BUDGET_OPTIONS)
        recipe = parser.add_argument_group("Recipe")
        recipe.add_argument(
            "--recipe",
            metavar="NAME",
            default="default",
            help="what options default to: quick, default, thorough or paper",
        )
        add_field_options(recipe, RECIPE_OPTIONS)
        add_bos_option(recipe)
        recipe.add_argument(
            "--plan", metavar="PATH", help="replay a saved plan (a checkpoint or its grasp_config.json)"
        )
        run = parser.add_argument_group("Optional arguments")
        run.add_argument("--gradient-checkpointing", action="store_true", help="save memory, about a third slower")
        run.add_argument("--deterministic", action="store_true", help=DETERMINISTIC_HELP)
        run.add_argument("--overwrite", action="store_true", help="replace the pruned checkpoint in OUTPUT")
        run.add_argument("--max-shard-size", metavar="SIZE", default="5GB", help="largest weight file, as in 5GB")
        add_model_options(run)

    def execute(self) -> None:
        """Prune, save, summarise."""
        from optimum_grasprune.checkpoint import check_shard_size
        from optimum_grasprune.pruner import GRASPPruner
        from optimum_grasprune.report import print_summary
        from optimum_grasprune.staging import check_output

        config = self._config()
        check_shard_size(self.args.max_shard_size)
        self.check_outputs(self.args.output)
        check_output(self.args.output, overwrite=self.args.overwrite)
        pruner = GRASPPruner(config)
        self._prune(pruner)
        pruner.save(self.args.output, overwrite=self.args.overwrite, max_shard_size=self.args.max_shard_size)
        print_summary(pruner.record, f"{self.args.model} -> {self.args.output}")
        self.write_result({name: value for name, value in pruner.record.items() if name != "plan"})

    def _config(self) -> GRASPConfig:
        from optimum_grasprune.config import RECIPES
        from optimum_grasprune.errors import OptionError

        if self.args.recipe not in RECIPES:
            raise OptionError("recipe", self.args.recipe, f"no such recipe; there are {', '.join(RECIPES)}")
        return RECIPES[self.args.recipe](**given_fields(self.args))

    def _prune(self, pruner: GRASPPruner) -> None:
        from optimum_grasprune.checkpoint import read_plan
        from optimum_grasprune.loading import load_config, load_model, load_tokenizer, require_unquantised

        config, source, options = pruner.config, self.args.model, self.source_options(self.args.model)
        saved = read_plan(self.args.plan) if self.args.plan else None
        require_unquantised(source, load_config(source, **options))
        model = load_model(source, dtype=config.dtype, device=config.device, **options)
        tokenizer = load_tokenizer(source, **options)
        if saved is None:
            pruner.prune_model(model, tokenizer)
        else:
            pruner.replay(model, tokenizer, *saved)

    def sources(self) -> list[Source]:
        """The model, the corpora and the plan."""
        from optimum_grasprune.outputs import corpora, local, models

        args = self.args
        return [
            *models("the model that is to be pruned", args.model),
            *local("the plan", args.plan),
            *corpora("the corpus", args.dataset),
        ]
