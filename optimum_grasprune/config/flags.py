"""Command-line options made from fields: flag, value, help and default of each stand in one place, the field.

Values stay strings: the option class converts and checks them, so a bad one gives the same line as in Python.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from ..registry import METHODS, STAGES, Registry, stages_in
from .base import Flag, Options
from .budget import BudgetOptions
from .calibration import CalibrationOptions
from .diagonals import DiagonalOptions
from .gates import GateOptions
from .least_squares import LeastSquaresOptions
from .pruning import PruningOptions
from .recovery import RecoveryOptions
from .run import RunOptions
from .scales import ScaleOptions
from .search import SearchOptions

GROUPS: dict[str, type[Options]] = {
    "what is cut": PruningOptions,
    "budget": BudgetOptions,
    "calibration": CalibrationOptions,
    "gates": GateOptions,
    "search": SearchOptions,
    "least squares": LeastSquaresOptions,
    "scales": ScaleOptions,
    "diagonals": DiagonalOptions,
    "recovery": RecoveryOptions,
    "run": RunOptions,
}
"""The groups of `GRASPConfig` in the order of `--help`."""

_KINDS: tuple[Registry[Any], ...] = (METHODS, STAGES)
_EVERYDAY = (BudgetOptions, PruningOptions, RecoveryOptions, CalibrationOptions, RunOptions)


def add_everyday_options(
    group: argparse._ArgumentGroup, leave_out: Collection[str] = (), several: Mapping[str, str] | None = None
) -> None:
    """The options of `GRASPConfig` that most runs choose from. leave_out: fields that the command has no option for.

    several: fields that the command takes several values of, as lists, and what those mean, for `--help`.
    """
    for options in _EVERYDAY:
        names = [name for name, field in options.model_fields.items() if _flag_of(field).everyday]
        add_options(group, options, [name for name in names if name not in leave_out], several)


def add_advanced_options(parser: argparse.ArgumentParser, leave_out: Collection[str] = ()) -> None:
    """All others, in their groups."""
    for title, options in GROUPS.items():
        names = [name for name, field in options.model_fields.items() if not _flag_of(field).everyday]
        if names := [name for name in names if name not in leave_out]:
            add_options(parser.add_argument_group(f"Advanced: {title}"), options, names)


def add_own_options(
    parser: argparse.ArgumentParser,
    arguments: Sequence[str],
    *,
    method: str = "method",
    stage: str = "compensation",
) -> list[str]:
    """The options that the chosen methods and stages bring along, and those of all that are loaded.

    arguments: the command line, which chooses them. Of the others, it says how to see them.
    method, stage: the options that choose them; each may name several, as in `toy+bias@alpha=1`. Returns the fields.
    """
    fields: list[str] = []
    chosen = _chosen_in(arguments, (method, stage))
    for registry, option in zip(_KINDS, (method, stage), strict=True):
        for name in registry.with_options():
            group = f"Options of the {registry.kind} {name}"
            if name not in (*chosen, *registry.loaded_with_options()):
                parser.add_argument_group(group, f"shown by --{option} {name} --help")
            elif (options := registry.options_of(name)) is not None:
                add_options(parser.add_argument_group(group), options)
                fields += options.model_fields
    return fields


def _chosen_in(arguments: Sequence[str], options: Iterable[str]) -> set[str]:
    early = argparse.ArgumentParser(add_help=False)
    for option in options:
        early.add_argument(f"--{option}", dest="entries", nargs="*", action="extend", default=[])
    entries = early.parse_known_args(arguments)[0].entries
    names = [name for entry in entries for name in re.split("[+:@]", entry)]
    return {stage for name in names for stage in (name, *stages_in(name))}


def add_options(
    group: argparse._ArgumentGroup,
    options: type[Options],
    names: Collection[str] | None = None,
    several: Mapping[str, str] | None = None,
) -> None:
    """One option a field. names: the fields that get one; None for all.  several: as in `add_everyday_options`."""
    for name, field in options.model_fields.items():
        if names is None or name in names:
            _add_option(group, name, field, (several or {}).get(name))


def given(args: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    """The options that were given on the command line, by field name; the others keep their defaults."""
    return {name: value for name in names if (value := getattr(args, name, None)) is not None}


def as_flags(values: Mapping[str, object]) -> list[str]:
    """Options by field name as words of a command line; None stands for no word."""
    words: list[str] = []
    for name, value in values.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            words += [f"--{flag}", str(value)]
    return words


def _add_option(group: argparse._ArgumentGroup, name: str, field: FieldInfo, several: str | None = None) -> None:
    flag, text = f"--{name.replace('_', '-')}", (field.description or "").replace("%", "%%")
    kind = _without_none(field.annotation)
    if kind is not bool:
        if not field.is_required() and field.default is not None:
            text += f" (default: {field.default})"
        metavar = _flag_of(field).metavar or _metavar(kind)
        if several is None:
            group.add_argument(flag, metavar=metavar, help=text)
        else:
            group.add_argument(flag, metavar=metavar, nargs="+", help=f"{text}; {several}")
    elif field.default is False:
        group.add_argument(flag, action="store_true", default=None, help=text)
    else:
        group.add_argument(flag, action=argparse.BooleanOptionalAction, help=text)


def _flag_of(field: FieldInfo) -> Flag:
    return next((entry for entry in field.metadata if isinstance(entry, Flag)), Flag())


def _without_none(annotation: Any) -> Any:
    kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
    return kinds[0] if get_origin(annotation) in (Union, UnionType) and len(kinds) == 1 else annotation


def _metavar(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    return {int: "N", float: "X"}.get(kind, "NAME")
