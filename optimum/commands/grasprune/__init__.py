"""`optimum-cli grasprune`: prune, measure and inspect language models.

The commands stand here, where Optimum's own plugins keep theirs, and not inside `optimum_grasprune`. These files are
imported at every start of `optimum-cli`, so they import nothing heavy, and what options there are is worked out for the
command that runs alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo

from .base import LateParser
from .benchmark import BenchmarkCommand
from .compare import CompareCommand
from .evaluate import EvaluateCommand
from .export import ExportCommand
from .inspect import InspectCommand

if TYPE_CHECKING:
    from argparse import ArgumentParser, _SubParsersAction

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

    COMMAND = CommandInfo(name="grasprune", help="Prune language models into smaller dense checkpoints.")
    SUBCOMMANDS = tuple(
        CommandInfo(command.COMMAND.name, command.COMMAND.help, command)
        for command in (ExportCommand, CompareCommand, EvaluateCommand, BenchmarkCommand, InspectCommand)
    )

    _subparsers: _SubParsersAction[LateParser] | None = None

    def __init__(self, subparsers: _SubParsersAction[ArgumentParser], *args: Any, **options: Any) -> None:
        # Optimum registers a plugin's command once for each folder of its namespace that has the registration file: a
        # clone in the working directory is one, an installed package another. The first has made the command already.
        if options.get("from_defaults_factory") or self.COMMAND.name not in subparsers.choices:
            super().__init__(subparsers, *args, **options)

    @property
    def subparsers(self) -> _SubParsersAction[LateParser]:
        """The parsers of the subcommands, which declare their options late."""
        if self._subparsers is None:
            self._subparsers = self.parser.add_subparsers(parser_class=LateParser)
        return self._subparsers

    @subparsers.setter
    def subparsers(self, subparsers: _SubParsersAction[LateParser] | None) -> None:
        self._subparsers = subparsers

    def run(self) -> None:
        """Show what there is: a subcommand is needed."""
        self.parser.print_help()
