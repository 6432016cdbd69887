"""`optimum-cli grasprune export`: the main job."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from optimum.commands.base import CommandInfo

from .base import Subcommand, add_example, add_model_options, declare_late

if TYPE_CHECKING:
    from optimum_grasprune.export.outputs import Source
    from optimum_grasprune.pruned import PrunedModel
    from optimum_grasprune.pruner import GRASPPruner


class ExportCommand(Subcommand):
    """Prune a model and save the smaller one."""

    COMMAND = CommandInfo(name="export", help="Prune a model and save the smaller dense checkpoint.")

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        """Declare the options."""
        add_example(
            parser, "optimum-cli grasprune export -m ./llama --keep-ratio 0.5 --dataset corpus.txt ./pruned-llama"
        )
        declare_late(parser, _declare)

    def execute(self) -> None:
        """Prune, save, summarise."""
        from optimum_grasprune.config import by_recipe
        from optimum_grasprune.config.flags import given
        from optimum_grasprune.export.checkpoint import check_shard_size
        from optimum_grasprune.export.staging import check_output
        from optimum_grasprune.pruner import GRASPPruner
        from optimum_grasprune.report import print_summary

        config = by_recipe(self.args.recipe, **given(self.args, self.args.config_fields))
        check_shard_size(self.args.max_shard_size)
        self.check_outputs(self.args.output)
        self._check_state_folder()
        check_output(self.args.output, overwrite=self.args.overwrite)
        pruned = self._prune(GRASPPruner(config))
        pruned.save(self.args.output, overwrite=self.args.overwrite, max_shard_size=self.args.max_shard_size)
        print_summary(pruned.record, f"{self.args.model} -> {self.args.output}")
        self.write_result({name: value for name, value in pruned.record.to_dict().items() if name != "plan"})

    def _check_state_folder(self) -> None:
        from pathlib import Path

        from optimum_grasprune.export.outputs import Source, check_apart

        if (folder := self.args.recover_checkpoint) is not None:
            state = Source("the folder of --recover-checkpoint", Path(folder).absolute())
            check_apart(self.args.output, [state])
            check_apart(folder, self.sources())

    def _prune(self, pruner: GRASPPruner) -> PrunedModel:
        from optimum_grasprune.export.checkpoint import read_plan
        from optimum_grasprune.loading import load_config, load_model, load_tokenizer, require_unquantised

        config, source, options = pruner.config, self.args.model, self.source_options(self.args.model)
        saved = read_plan(self.args.plan) if self.args.plan else None
        require_unquantised(source, load_config(source, **options))
        model = load_model(source, dtype=config.dtype, device=config.device, **options)
        tokenizer = load_tokenizer(source, **options)
        return pruner.prune(model, tokenizer) if saved is None else pruner.replay(model, tokenizer, *saved)

    def sources(self) -> list[Source]:
        """The model, the corpora and the plan."""
        from optimum_grasprune.export.outputs import corpora, local, models

        args = self.args
        return [
            *models("the model that is to be pruned", args.model),
            *local("the plan", args.plan),
            *corpora("the corpus", args.dataset),
            *corpora("the text that is watched", args.recover_watch),
        ]


def _declare(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> None:
    from optimum_grasprune.config import RECIPES, GRASPConfig
    from optimum_grasprune.config.flags import add_advanced_options, add_everyday_options, add_own_options

    required = parser.add_argument_group("Required arguments")
    required.add_argument("-m", "--model", required=True, help="model folder or Hugging Face name")
    required.add_argument("output", metavar="OUTPUT", help="folder for the pruned checkpoint")
    optional = parser.add_argument_group("Optional arguments")
    optional.add_argument(
        "--recipe",
        metavar="|".join(RECIPES),
        default="default",
        help="what the other options default to (default: default)",
    )
    add_everyday_options(optional)
    optional.add_argument("--plan", metavar="PATH", help="replay a saved plan (a checkpoint or its grasp_config.json)")
    optional.add_argument("--overwrite", action="store_true", help="replace the pruned checkpoint in OUTPUT")
    add_model_options(optional)
    own = add_own_options(parser, arguments)
    add_advanced_options(parser)
    writing = parser.add_argument_group("Advanced: writing")
    writing.add_argument(
        "--max-shard-size", metavar="SIZE", default="5GB", help="largest weight file, as in 5GB (default: 5GB)"
    )
    parser.set_defaults(config_fields=(*GRASPConfig.model_fields, *own))
