"""`optimum-cli grasprune inspect`: the widths of a checkpoint, layer by layer, and what fits beside it on a GPU.

No weights are loaded.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from optimum.commands.base import CommandInfo

from .base import ENDINGS, Subcommand, add_example, add_model_options, check_drawing, declare_late

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from optimum_grasprune.export.outputs import Source
    from optimum_grasprune.model_files import ReadAs
    from optimum_grasprune.record import Record
    from optimum_grasprune.report.pictures import Drawn
    from optimum_grasprune.serving.inspection import Deployment, Inspection


class InspectCommand(Subcommand):
    """Show widths, parameters and KV-cache bytes of any checkpoint, the budget of a pruned one, and what fits."""

    COMMAND = CommandInfo(name="inspect", help="Show the widths of a checkpoint and how many sequences fit on a GPU.")

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        """Declare the options."""
        add_example(parser, "optimum-cli grasprune inspect -m ./pruned-llama --gpu-memory 24GiB --context 4096")
        declare_late(parser, _declare)

    def sources(self) -> list[Source]:
        """The model and the dense one."""
        from optimum_grasprune.export.outputs import models

        return models("a model that is inspected", self.args.model, self.args.dense)

    def execute(self) -> None:
        """Read shapes off the configuration, then print or draw them beside the recorded budget and what fits."""
        from optimum_grasprune.export.checkpoint import read_numbers, read_record
        from optimum_grasprune.families import family_of
        from optimum_grasprune.loading import load_config
        from optimum_grasprune.report import print_summary, print_table
        from optimum_grasprune.serving.inspection import COLUMNS, inspection, shares_kept

        drawing = self._checked_pictures()
        config = load_config(self.args.model, **self._read_as())
        family_of(config)  # no other complaint before that of an unknown family
        deployment = self._deployment(config)
        found = inspection(self.args.model, config)
        print_table(self.args.model, COLUMNS, found.rows(), found.footer())
        record = read_record(self.args.model, self.args.revision)
        if record:
            print_summary(record, f"pruned from {record.base_model.name or 'a model in memory'}")
        if deployment is not None:
            print_table(deployment.title(), deployment.columns(), deployment.rows(), deployment.footer())
        if drawing is not None:
            numbers = read_numbers(self.args.model, self.args.revision)
            drawn = drawing.Drawn(self.args.model, shares_kept(config, record), numbers)
            self._write_pictures(drawn, (found, record, deployment))
        self.write_result(
            {
                **found.to_dict(),
                "budget": record.budget.to_dict() if record else None,
                "deployment": None if deployment is None else deployment.to_dict(),
            }
        )

    def _checked_pictures(self) -> ModuleType | None:
        """What draws for `--plot` and `--html`; None where neither is asked for. OptionError, GraspruneError."""
        from optimum_grasprune.errors import OptionError

        if self.args.plot_of is not None and self.args.plot is None:
            raise OptionError("plot_of", self.args.plot_of, "is of use only with --plot")
        asked = {option: [file] for option in ENDINGS if (file := getattr(self.args, option)) is not None}
        return check_drawing(asked, self.sources())

    def _write_pictures(
        self,
        drawn: Drawn,
        inspected: tuple[Inspection, Record | None, Deployment | None],
    ) -> None:
        if self.args.plot is not None:
            drawn.write(self.args.plot, self.args.plot_of or "shape")
        if self.args.html is not None:
            from optimum_grasprune.serving.checkpoint_report import checkpoint_report
            from optimum_grasprune.writing import write_file

            page = checkpoint_report(*inspected, drawn.pictures())
            write_file(Path(self.args.html), page.html().encode())

    def _read_as(self) -> ReadAs:
        return self.source_options(self.args.model, *filter(None, [self.args.dense]))

    def _deployment(self, config: PreTrainedConfig) -> Deployment | None:
        from optimum_grasprune.config import DeploymentOptions
        from optimum_grasprune.config.flags import given
        from optimum_grasprune.errors import OptionError
        from optimum_grasprune.loading import load_config
        from optimum_grasprune.serving.inspection import deployment, deployment_options

        chosen, named = given(self.args, DeploymentOptions.model_fields), self.args.dense
        if "gpu_memory" not in chosen:
            for option in ("dense", *chosen):
                if (value := getattr(self.args, option)) is not None:
                    raise OptionError(option, value, "is of use only with --gpu-memory")
            return None
        options = deployment_options(config, chosen)
        dense = (load_config(named, **self._read_as()), named) if named else None
        return deployment(config, self.args.model, options, dense)


def _declare(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> None:
    from optimum_grasprune.config import DeploymentOptions
    from optimum_grasprune.config.flags import add_options

    required = parser.add_argument_group("Required arguments")
    required.add_argument("-m", "--model", required=True, help="model folder or Hugging Face name")
    deployment = parser.add_argument_group("Deployment")
    add_options(deployment, DeploymentOptions)
    deployment.add_argument(
        "--dense", metavar="MODEL", help="dense model to compare with; by default what the checkpoint was cut from"
    )
    optional = parser.add_argument_group("Optional arguments")
    optional.add_argument(
        "--plot", metavar="FILE", help="draw what each layer keeps into this file, .png or .svg; needs matplotlib"
    )
    optional.add_argument(
        "--plot-of",
        choices=("shape", "training", "scores"),
        help="draw how its training went, or the scores that its units were chosen by, in place of the shape",
    )
    optional.add_argument(
        "--html", metavar="FILE", help="write all of it as one HTML page, with those pictures; needs matplotlib"
    )
    add_model_options(optional)
