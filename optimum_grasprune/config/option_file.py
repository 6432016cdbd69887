"""Options in a file, `-c FILE`: a YAML mapping of their names to values, each as it would stand on the command line.

Nothing is made of the file but text and lists of text. No tag runs code, an alias costs nothing, and `2:4` is what it
says and no time of day; what a value means is for the option classes to tell, as with words of the command line.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from pydantic import JsonValue

from ..errors import OptionError

LARGEST_FILE = 64 * 2**10
"""Bytes of the largest file that is read: a recipe is a page, and YAML of megabytes takes minutes."""

Value = str | list[str] | None
"""What a file gives an option. None, YAML's null, leaves it alone."""

_NULL, _PLAIN = "tag:yaml.org,2002:null", {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool")}
_DATES = "tag:yaml.org,2002:timestamp"


@dataclass(frozen=True)
class OptionFile:
    """What a file sets.

    path: as it was given.  values: by field name, `keep_ratio`.  keys: how the file spells each, `keep-ratio` perhaps.
    of_checkpoint: whether it is the recipe of a checkpoint, all of it, and not a choice of options.
    """

    path: str
    values: Mapping[str, Value]
    keys: Mapping[str, str] = field(default_factory=dict)
    of_checkpoint: bool = False

    def refused(self, name: str, reason: str) -> OptionError:
        """An error about the value of a field."""
        return OptionError("config", self.path, f"{self.keys.get(name, name)}: {reason}")

    def unknown(self, name: str, known: Collection[str]) -> OptionError:
        """The error that a field is none of the known ones."""
        near = difflib.get_close_matches(name, known, n=3)
        nearest = f"; the nearest: {', '.join(near)}" if near else ""
        return OptionError("config", self.path, f"there is no option {self.keys.get(name, name)}{nearest}")


def read_option_file(path: str) -> OptionFile:
    """The options that a YAML file sets. Raises OptionError with the file, and the line of what is no such option."""
    root = _root(path, _text_in(path))
    if root is None:
        return OptionFile(path, {})
    if not isinstance(root, yaml.MappingNode):
        raise OptionError("config", path, "should hold options, one a line, as in 'keep_ratio: 0.5'")
    values: dict[str, Value] = {}
    keys: dict[str, str] = {}
    for key, value in root.value:
        spelled = _scalar(key)
        if spelled is None:
            raise OptionError("config", path, f"line {_line_of(key)}: the name of an option should be text")
        name = spelled.replace("-", "_")
        if name in values:
            raise OptionError("config", path, f"line {_line_of(key)}: {spelled} is set twice")
        values[name], keys[name] = _value(path, spelled, value), spelled
    return OptionFile(path, values, keys)


def as_options(path: str, recipe: Mapping[str, JsonValue]) -> OptionFile:
    """The recipe of a checkpoint as options that a file sets. path: of the checkpoint, or of its record."""
    return OptionFile(path, {name: _text_of(value) for name, value in recipe.items()}, of_checkpoint=True)


def _text_of(value: JsonValue) -> Value:
    return None if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _text_in(path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise OptionError("config", path, f"cannot be read: {error.strerror}") from None
    if len(content) > LARGEST_FILE:
        raise OptionError("config", path, f"holds more than {LARGEST_FILE:,} bytes, too many for a recipe")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise OptionError("config", path, f"is not UTF-8: byte {error.start} cannot be read") from None


def _root(path: str, text: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise OptionError("config", path, f"is not YAML: {line}{error.problem or error.context}") from None
    except yaml.YAMLError as error:  # of characters that no YAML may hold
        raise OptionError("config", path, f"is not YAML: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise OptionError("config", path, "is not YAML that holds options: it is nested too deeply") from None


def _value(path: str, key: str, node: yaml.Node) -> Value:
    if node.tag == _NULL:
        return None
    if (text := _scalar(node)) is not None:
        return text
    if isinstance(node, yaml.SequenceNode):
        texts = [text for entry in node.value if (text := _scalar(entry)) is not None]
        if len(texts) == len(node.value) > 0:
            return texts
    raise OptionError("config", path, f"line {_line_of(node)}: {key} should be text, a number, or a list of them")


def _scalar(node: yaml.Node) -> str | None:
    """The text of a plain value; None for null, for lists and mappings, and for what asks for another type."""
    plain = isinstance(node, yaml.ScalarNode) and (node.tag in _PLAIN or node.tag == _DATES)
    return node.value if plain else None


def _line_of(node: yaml.Node) -> int:
    return node.start_mark.line + 1
