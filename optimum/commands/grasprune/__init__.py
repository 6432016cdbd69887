"""`optimum-cli grasprune`: prune, measure and inspect LLaMA-family models.

The commands stand here, where Optimum's own plugins keep theirs, and not inside `optimum_grasprune`: importing that
package loads torch, and these files are imported at every start of `optimum-cli`.
"""

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo

from .benchmark import BenchmarkCommand
from .compare import CompareCommand
from .evaluate import EvaluateCommand
from .export import ExportCommand
from .inspect import InspectCommand

__all__ = [
    "BenchmarkCommand",
    "CompareCommand",
    "EvaluateCommand",
    "ExportCommand",
    "GraspruneCommand",
    "InspectCommand",
]


class GraspruneCommand(BaseOptimumCLICommand):
    """The parent of the subcommands."""

    COMMAND = CommandInfo(name="grasprune", help="Prune LLaMA-family models into smaller dense checkpoints.")
    SUBCOMMANDS = tuple(
        CommandInfo(command.COMMAND.name, command.COMMAND.help, command)
        for command in (ExportCommand, CompareCommand, EvaluateCommand, BenchmarkCommand, InspectCommand)
    )

    def run(self) -> None:
        """Show what there is: a subcommand is needed."""
        self.parser.print_help()
