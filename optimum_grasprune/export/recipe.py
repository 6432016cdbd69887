"""A recipe is read from a file of options, or from the checkpoint that was made by it."""

from __future__ import annotations

import os
from pathlib import Path

from ..config.option_file import OptionFile, as_options, read_option_file
from ..errors import OptionError
from ..reading import json_in
from .staging import RECORD_NAME, is_record


def read_recipe(path: str) -> OptionFile:
    """The options that a YAML file sets, or those of a checkpoint, given as its folder or as its `grasp_config.json`.

    Nothing but the recipe is taken of a checkpoint: which model it was made from is not. Raises OptionError or
    CheckpointError.
    """
    file = Path(path)
    if os.path.isdir(file):  # unlike Path's, it never raises: a name may be too long for any file
        file = file / RECORD_NAME
        if not file.is_file():
            raise OptionError("config", path, f"is a folder without {RECORD_NAME}")
    elif not _holds_record(file):
        return read_option_file(path)
    from ..record import Record  # loads torch, which no other recipe needs

    try:
        return as_options(path, Record.read(file).recipe)
    except OSError as error:
        raise OptionError("config", path, f"cannot be read: {error.strerror}") from None


def _holds_record(file: Path) -> bool:
    if file.suffix != ".json":
        return False
    try:
        return is_record(json_in(file))
    except (OSError, ValueError):
        return False
