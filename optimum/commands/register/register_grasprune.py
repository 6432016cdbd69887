"""Joins `optimum-cli`. This file is imported at every start of the command line, so it imports nothing heavy."""

from optimum.commands.grasprune import GraspruneCommand

REGISTER_COMMANDS = [GraspruneCommand]
