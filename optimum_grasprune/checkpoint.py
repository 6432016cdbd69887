"""Pruned checkpoints on disk.

A checkpoint is a folder that transformers and vLLM load: config.json (with `per_layer_config` and `auto_map`), the two
modelling files, sharded safetensors, tokenizer, generation config, a model card, and `grasp_config.json`, which says
how it was made and holds the plan. Where single weights were cut it is a stock checkpoint: its config.json is the dense
model's, there are no modelling files and there is no plan.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from .errors import CheckpointError, PlanError
from .loading import load_model
from .modeling import CODE_FILES, PRUNED_CLASSES, auto_map
from .plan import PruningPlan

RECORD_NAME = "grasp_config.json"


@contextmanager
def staged_folder(output: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """A folder to write into that becomes `output` when the block ends well and vanishes when it does not.

    Raises CheckpointError when `output` cannot be written, or holds something and `overwrite` is false.
    """
    target = Path(output).absolute()
    check_output(target, overwrite=overwrite)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise CheckpointError(f"the output folder {output} cannot be written: {error.strerror}") from None
    try:
        yield staging
        _open_up(staging)
        _replace(target, staging)
    except OSError as error:
        raise CheckpointError(f"the output folder {output} cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def check_output(output: str | os.PathLike[str], *, overwrite: bool) -> None:
    """Raise CheckpointError unless a checkpoint may be written there; called before any long work starts."""
    target = Path(output)
    if target.exists() and not target.is_dir():
        raise CheckpointError(f"the output {output} is a file, not a folder")
    if target.is_dir() and any(target.iterdir()):
        if not overwrite:
            raise CheckpointError(f"the output folder {output} is not empty; use --overwrite to replace it")
        if not (target / "config.json").is_file():
            raise CheckpointError(f"the output folder {output} holds something other than a model; it is not replaced")
    nearest = next(folder for folder in (target.absolute(), *target.absolute().parents) if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise CheckpointError(f"the output folder {output} cannot be written: no permission in {nearest}")


def results_folder(output: Path, marker: str, what: str) -> Path:
    """Make a folder for results, or find one that holds some already, so that work that was stopped can go on.

    marker: the folder inside it that says so, which is returned.  what: the name of such results in messages.
    Raises CheckpointError when it is something else, or cannot be written.
    """
    inner = output / marker
    if output.exists() and not output.is_dir():
        raise CheckpointError(f"the output {output} is a file, not a folder")
    if output.is_dir() and any(output.iterdir()) and not inner.is_dir():
        raise CheckpointError(f"the output folder {output} holds something other than a {what}")
    try:
        inner.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"the output folder {output} cannot be written: {error.strerror}") from None
    for folder in (output, inner):
        if not os.access(folder, os.W_OK):
            raise CheckpointError(f"the output folder {output} cannot be written: no permission in {folder}")
    return inner


def save_checkpoint(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    record: dict[str, Any],
    output: str | os.PathLike[str],
    *,
    card: str = "",
    overwrite: bool = False,
    max_shard_size: str = "5GB",
) -> None:
    """Write a pruned model. All files are written beside `output` and moved there at once.

    record: what goes into `grasp_config.json`.  card: the model card.  Raises CheckpointError on a failed write.
    """
    with staged_folder(output, overwrite=overwrite) as folder:
        try:
            model.save_pretrained(folder, max_shard_size=max_shard_size)
            if tokenizer is not None:
                tokenizer.save_pretrained(folder)
        except OSError:
            raise
        except Exception as error:  # safetensors reports a full disk as an error type of its own
            raise CheckpointError(f"the output folder {output} cannot be written: {error}") from None
        if needs_code(model.config.model_type):
            add_code(folder, model.config)
        write_json(folder / RECORD_NAME, record)
        if card:
            (folder / "README.md").write_text(card, encoding="utf-8")


def needs_code(model_type: str) -> bool:
    """Whether models of this type are classes of ours; a stock model, with zeros in it or not, needs no code."""
    return any(config_class.model_type == model_type for config_class, _, _ in PRUNED_CLASSES.values())


def add_code(folder: Path, config: PreTrainedConfig) -> None:
    """Put the modelling files beside a pruned model's config.json, and name them in it."""
    for file in CODE_FILES:
        shutil.copyfile(file, folder / file.name)
    _add_auto_map(folder / "config.json", auto_map(config))


def load_pruned_model(
    checkpoint: str | os.PathLike[str], *, dtype: str = "auto", device: str = "auto"
) -> PreTrainedModel:
    """A pruned model, every tensor checked; CheckpointError when one is missing or has the wrong shape."""
    return load_model(str(checkpoint), dtype=dtype, device=device)


def read_record(checkpoint: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The content of a checkpoint's `grasp_config.json`, or None when it has none."""
    path = Path(checkpoint) / RECORD_NAME
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from None


def read_plan(path: str | os.PathLike[str]) -> tuple[PruningPlan, dict[str, Any]]:
    """The plan in a checkpoint folder or in its `grasp_config.json`, and the whole record; PlanError without one."""
    file = Path(path) / RECORD_NAME if Path(path).is_dir() else Path(path)
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if absent := {"recipe", "calibration", "budget"} - set(record):
            raise KeyError(*sorted(absent))
        if record.get("plan", {}) is None:
            raise PlanError(f"{file} holds no pruning plan: single weights were set to zero, no units were cut")
        return PruningPlan.from_dict(record["plan"]), record
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PlanError(f"{file} holds no pruning plan: {error!r}") from None


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON with each object on its own line and lists of numbers on one; replaces the file at once."""
    write_file(path, (_pretty(content) + "\n").encode())


def write_file(path: Path, content: bytes) -> None:
    """Write a file; what was there stays until the new one is whole. CheckpointError when it cannot be written."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise CheckpointError(f"{path} cannot be written: {error.strerror}") from None


def _pretty(value: Any, indent: int = 0) -> str:
    # json.dumps(indent=2) would put each of hundreds of thousands of kept indices on a line of its own.
    if isinstance(value, dict) and value:
        pad = " " * (indent + 2)
        items = (f"{pad}{json.dumps(str(key))}: {_pretty(item, indent + 2)}" for key, item in value.items())
        return "{\n" + ",\n".join(items) + "\n" + " " * indent + "}"
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        pad = " " * (indent + 2)
        return "[\n" + ",\n".join(pad + json.dumps(item) for item in value) + "\n" + " " * indent + "]"
    return json.dumps(value, allow_nan=False)


def _add_auto_map(config_file: Path, entry: dict[str, str]) -> None:
    content = json.loads(config_file.read_text(encoding="utf-8"))
    content["auto_map"] = entry
    config_file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _replace(target: Path, staging: Path) -> None:
    if not target.exists():
        staging.rename(target)
        return
    # A folder cannot be renamed over a full one: the old one steps aside, and comes back if the move fails.
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
    target.rename(aside / "old")
    try:
        staging.rename(target)
    except OSError:
        (aside / "old").rename(target)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _open_up(folder: Path) -> None:
    # Temporary folders and safetensors files are private to their maker; a server often runs as another user.
    umask = os.umask(0)
    os.umask(umask)
    for path in (folder, *folder.rglob("*")):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)
