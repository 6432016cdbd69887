"""The values of a file in place of the defaults of a command's options: what the command line says goes before them."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from .grasp import GRASPConfig
from .method_options import load_owners
from .option_file import OptionFile, Value

_NEVER = ("help", "config")
"""Options that no file sets."""


def as_arguments(file: OptionFile) -> list[str]:
    """The options of a file as a command line has them: whatever looks there for methods and stages finds them.

    Loads what brings along the options that are not everybody's.
    """
    load_owners(file.values)
    return [f"--{name}={text}" for name, value in file.values.items() for text in _texts(value)]


def given_options(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> set[str]:
    """The options that a command line gives, by their names in the namespace."""
    kept = [(action, action.default, action.required) for action in parser._actions]
    for action in parser._actions:
        action.default, action.required = argparse.SUPPRESS, False
    try:
        found, _ = argparse.ArgumentParser.parse_known_args(parser, arguments, argparse.Namespace())
    finally:
        for action, default, required in kept:
            action.default, action.required = default, required
    return {action.dest for action in parser._actions} & set(vars(found))


def set_defaults(parser: argparse.ArgumentParser, file: OptionFile, given: Collection[str]) -> None:
    """Have a parser take the values of a file for all options but those that are given, required ones too.

    What came from the file is in `from_file` of the namespace: how the file spells it, by name. Raises OptionError for
    what is no option of the parser's.
    """
    actions = {action.dest: action for action in parser._actions if action.dest not in _NEVER}
    taken = {}
    for name, value in file.values.items():
        if file.of_checkpoint and "method" in given and name not in GRASPConfig.model_fields:
            continue  # the options of a method go with it
        if name not in actions:
            raise file.unknown(name, actions)
        if any("\0" in text for text in _texts(value)):
            raise file.refused(name, "holds a zero byte, which no name of a file or option has")
        if _lets_code_run(name, value):
            raise file.refused(name, "stands on the command line alone, since it lets code run that comes with a model")
        if value is not None and name not in given:
            actions[name].default = _converted(actions[name], file, value)
            actions[name].required = False
            taken[name] = file.keys.get(name, name)
    parser.set_defaults(from_file=taken)


def _lets_code_run(name: str, value: Value) -> bool:
    """Whether a value trusts the code of a model, for this package or among the flags of an engine."""
    if name == "trust_remote_code":
        return "true" in (text.lower() for text in _texts(value))
    return any("--trust" in text for text in _texts(value))  # however it is shortened


def _converted(action: argparse.Action, file: OptionFile, value: Value) -> Any:
    """A value as the option would have it from the command line."""
    if action.nargs == 0:
        switch = {"true": True, "false": False}.get(str(value).lower())
        if switch is None:
            raise file.refused(action.dest, f"{value} should be true or false")
        return switch
    if takes_many(action):
        return list(_texts(value))
    if isinstance(value, list):
        raise file.refused(action.dest, "takes one value, not a list")
    return value


def takes_many(action: argparse.Action) -> bool:
    """Whether an option collects values in a list."""
    return action.nargs in ("+", "*") or isinstance(action, argparse._AppendAction)


def _texts(value: Value) -> Iterable[str]:
    return [] if value is None else [value] if isinstance(value, str) else value
