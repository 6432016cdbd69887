"""Checkpoint folders that are there whole or not at all, and that nothing else is lost to.

A new folder is written beside its place and renamed. One that is there already (empty, a mount point, a clone, an older
checkpoint) stays: a hidden folder inside it takes the files, which are then moved into place one by one, config.json
last, so that a half-moved checkpoint never looks like a whole one.
"""

from __future__ import annotations

import errno
import filecmp
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path

from ..errors import CheckpointError
from ..reading import json_in
from ..writing import made_folders, resolved, try_writing

RECORD_NAME, NUMBERS_NAME = "grasp_config.json", "grasp_report.json"
CHECKPOINT_FILES = (
    *("config.json", "generation_config.json", RECORD_NAME, NUMBERS_NAME, "README.md"),
    *("configuration_grasp.py", "modeling_grasp.py"),
    *("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"),
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model"),
    *("chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja"),
)
"""What a checkpoint of ours consists of, as patterns: all that `--overwrite` ever replaces or removes."""
STATE_NAME = ".grasprune-state"
"""Folder in an output for the state of the run that makes it; beside the output where that is not there yet."""

_TEMPLATES = "additional_chat_templates"
_MADE_BY_THE_FILE_SYSTEM = {"lost+found"}


class UnmovedError(CheckpointError):
    """A checkpoint is written whole, but cannot be moved to its place; the message says where it is."""


def is_checkpoint_file(name: str) -> bool:
    """Whether a checkpoint of ours has such a file. name: relative to its folder, with forward slashes."""
    return any(fnmatchcase(name, pattern) for pattern in CHECKPOINT_FILES)


def is_pruned_checkpoint(folder: Path) -> bool:
    """Whether a folder holds a checkpoint of ours: one with a record of how it was made."""
    try:
        record = json_in(folder / RECORD_NAME)
    except (OSError, ValueError):
        return False
    return is_record(record)


def is_record(content: object) -> bool:
    """Whether the content of a JSON file is that of a checkpoint's record."""
    return isinstance(content, dict) and {"recipe", "base_model"} <= content.keys()


def state_folder(output: str | os.PathLike[str]) -> Path:
    """Where the state of the run lies that makes an output: where the checkpoint is staged, and on the same disk."""
    target = resolved(output)
    beside = target.parent / f".{target.name[:60]}{STATE_NAME}"
    return target / STATE_NAME if os.path.isdir(target) and not os.path.isdir(beside) else beside


Replaceable = Callable[[Path], bool]


def check_output(
    output: str | os.PathLike[str], *, overwrite: bool, replaceable: Replaceable = is_pruned_checkpoint
) -> None:
    """Raise CheckpointError unless a checkpoint may be written there; called before any long work starts.

    replaceable: whether a folder holds what `overwrite` is meant for.
    """
    target = resolved(output)
    if os.path.exists(target) and not target.is_dir():
        raise CheckpointError(f"the output {output} is a file, not a folder")
    try:
        names = sorted(entry.name for entry in target.iterdir()) if os.path.exists(target) else []
        held = [name for name in names if name not in (*_MADE_BY_THE_FILE_SYSTEM, STATE_NAME)]
        if held and not overwrite:
            raise CheckpointError(
                f"the output folder {output} is not empty; use --overwrite to replace the checkpoint in it"
            )
        if held and not replaceable(target):
            raise CheckpointError(
                f"the output folder {output} holds something other than a model that was pruned: {_listed(held)}; "
                "it is not replaced"
            )
        if obstacle := next((name for name in held if _is_obstacle(target / name)), None):
            raise CheckpointError(f"the output folder {output} cannot be overwritten: {obstacle} in it is no file")
        try_writing(target)
    except OSError as error:
        raise CheckpointError(f"the output folder {output} cannot be written: {error.strerror or error}") from None


@contextmanager
def staged_folder(
    output: str | os.PathLike[str], *, overwrite: bool = False, replaceable: Replaceable = is_pruned_checkpoint
) -> Iterator[Path]:
    """A folder to write into that becomes `output` when the block ends well and vanishes when it does not.

    Of a folder that is there, only files that a checkpoint consists of are replaced, and those only with `overwrite`.
    Raises CheckpointError when `output` cannot be written, UnmovedError when only the last step fails.
    """
    check_output(output, overwrite=overwrite, replaceable=replaceable)
    target = resolved(output)
    home = target if os.path.exists(target) else target.parent
    with ExitStack() as undo:
        try:
            for folder in made_folders(home):
                undo.callback(_remove_if_empty, folder)
            staging = Path(tempfile.mkdtemp(prefix=f".{target.name[:50]}.", dir=home))
            undo.callback(shutil.rmtree, staging, ignore_errors=True)
            yield staging
            _open_up(staging)
            _place(staging, target, overwrite=overwrite)
        except OSError as error:
            raise CheckpointError(f"the output folder {output} cannot be written: {_reason(error)}") from None
        except UnmovedError as error:
            undo.pop_all()
            raise UnmovedError(f"the output folder {output} cannot be written: {error}") from None


def _place(staging: Path, target: Path, *, overwrite: bool) -> None:
    try:
        if staging.parent == target:
            _move_in(staging, target, _old_files(target) if overwrite else [])
        else:
            staging.rename(target)  # fails if something was put there meanwhile
    except OSError as error:
        raise UnmovedError(f"{_reason(error)}; the whole checkpoint is in {staging}") from None


def _move_in(staging: Path, target: Path, old: list[str]) -> None:
    """Move all files of one folder into another that holds it, in place of those that are named.

    The old ones are set aside and come back, as the new ones go back, if one cannot be moved. OSError then.
    """
    new = [name for name in _files_in(staging) if name in old or not _there_already(staging / name, target / name)]
    aside = Path(tempfile.mkdtemp(prefix=".replaced.", dir=target))
    moves = [(target / name, aside / name) for name in sorted(old, key=_written_late, reverse=True)]
    moves += [(staging / name, target / name) for name in sorted(new, key=_written_late)]
    done: list[tuple[Path, Path]] = []
    try:
        for source, destination in moves:
            destination.parent.mkdir(parents=True, exist_ok=True)
            done.append((source, destination))
            os.replace(source, destination)
    except BaseException:
        for source, destination in reversed(done):
            if not os.path.lexists(source):
                os.replace(destination, source)
        shutil.rmtree(aside)
        _remove_if_empty(target / _TEMPLATES)
        raise
    shutil.rmtree(aside, ignore_errors=True)
    shutil.rmtree(staging, ignore_errors=True)
    _remove_if_empty(target / _TEMPLATES)


def _there_already(new: Path, old: Path) -> bool:
    """Whether the same file is there, which then needs no replacing. FileExistsError if it is another one."""
    if not os.path.lexists(old):
        return False
    if old.is_file() and filecmp.cmp(new, old, shallow=False):
        return True
    raise FileExistsError(errno.EEXIST, "it holds another file of this name", str(old))


def _written_late(name: str) -> tuple[bool, bool]:
    return name == "config.json", not name.endswith(".safetensors")


def _old_files(target: Path) -> list[str]:
    names = [entry.name for entry in target.iterdir()]
    if _TEMPLATES in names:
        names += [f"{_TEMPLATES}/{entry.name}" for entry in (target / _TEMPLATES).iterdir()]
    return [name for name in names if is_checkpoint_file(name)]


def _files_in(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()]


def _is_obstacle(path: Path) -> bool:
    """Whether something stands in the way of a checkpoint's file that is not to be moved: a folder by its name."""
    if path.name == _TEMPLATES:
        return path.is_symlink() or not path.is_dir()
    return is_checkpoint_file(path.name) and path.is_dir() and not path.is_symlink()


def _listed(names: list[str], limit: int = 4) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _reason(error: OSError) -> str:
    name = error.filename2 or error.filename
    return f"{error.strerror or error}" + (f": {Path(os.fsdecode(name)).name}" if name else "")


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _open_up(folder: Path) -> None:
    # Temporary folders and safetensors files are private to their maker; a server often runs as another user.
    umask = os.umask(0)
    os.umask(umask)
    for path in (folder, *folder.rglob("*")):
        with suppress(OSError):  # network and FAT file systems have no permissions to set
            path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)
