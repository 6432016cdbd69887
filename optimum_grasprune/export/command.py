"""The command that makes a checkpoint again, from its record."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from pydantic import JsonValue

from ..config import RECIPES, GRASPConfig
from ..config.flags import as_flags
from ..corpora.slices import source_and_split
from ..errors import OptionError
from ..record import Record
from ..record.describe import public_name

SOURCE_OPTIONS = ("dataset", "recover_watch")
"""Options that name texts, and so maybe files of a machine."""

_FIRST = ("method", "pattern", "compensation")


def command_of(record: Record, model: str) -> str | None:
    """The command line in the fewest words: the nearest recipe, and the options that differ from it.

    model: what the base model is called. Files are called by their names alone. None where the record holds an option
    that does not exist here.
    """
    try:
        config = record.config
    except OptionError:
        return None
    by_name = {name: _differing(config, name) for name in RECIPES}
    fitting = {name: differing for name, differing in by_name.items() if differing is not None}
    recipe = min(fitting, key=lambda name: (len(fitting[name]), name != "default"), default=None)
    if recipe is None:
        return None
    first = {name: fitting[recipe][name] for name in _FIRST if name in fitting[recipe]}
    chosen: dict[str, Any] = {**first, **fitting[recipe]}
    chosen |= {name: public_corpora(str(chosen[name])) for name in SOURCE_OPTIONS if name in chosen}
    chosen.pop("keep_ratio", None)
    ratios = record.shared.keep_ratios if record.shared else (config.keep_ratio,)
    words = ["optimum-cli", "grasprune", "export", "-m", model, "--keep-ratio", *map(str, ratios)]
    if record.shared and record.shared.nested:
        words.append("--nested")
    if recipe != "default":
        words += ["--recipe", recipe]
    return shlex.join([*words, *as_flags(chosen), "OUTPUT"])


def _differing(config: GRASPConfig, recipe: str) -> Mapping[str, JsonValue] | None:
    """What a configuration has that is not so in a recipe; None where options of the recipe cannot be taken back."""
    defaults = RECIPES[recipe]().to_dict()
    own = GRASPConfig(method=config.method, compensation=config.compensation).to_dict()
    differing = {name: value for name, value in config.to_dict().items() if value != {**own, **defaults}.get(name)}
    return None if None in differing.values() else differing


def public_corpora(source: str) -> str:
    """A corpus, or several with commas between them, with their parts, by names that say nothing of a machine."""
    parts = (source_and_split(part.strip()) for part in source.split(","))
    return ",".join(public_name(name) + _in_brackets(split) for name, split in parts)


def _in_brackets(split: str | None) -> str:
    return "" if split is None else split if split.startswith("[") else f"[{split}]"
