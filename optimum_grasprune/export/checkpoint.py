"""Pruned checkpoints on disk.

A checkpoint is a folder that transformers and vLLM load: config.json (with `per_layer_config` and `auto_map`), the two
modelling files, sharded safetensors, tokenizer, generation config, a model card, `grasp_config.json`, which says how it
was made and holds the plan, and `grasp_report.json`, the numbers behind the figures of its report. Where single weights
were cut it is a stock checkpoint: its config.json is the dense model's, there are no modelling files and there is no
plan.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import CheckpointError, OptionError, PlanError
from ..families import FAMILIES
from ..generation import savable, write_generation
from ..layer_store import store_of
from ..loading import load_config, load_model
from ..model_files import optional_file
from ..record import Record, ReportNumbers
from ..units import PruningPlan
from ..writing import resolved, write_json
from .outputs import Source, check_apart
from .sharded import files_of, save_sharded
from .staging import NUMBERS_NAME, RECORD_NAME, UnmovedError, check_output, staged_folder


def save_checkpoint(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    record: Record,
    output: str | os.PathLike[str],
    *,
    card: str = "",
    numbers: ReportNumbers | None = None,
    overwrite: bool = False,
    max_shard_size: int | str = "5GB",
    sources: Sequence[Source] = (),
) -> None:
    """Write a pruned model: all of it or nothing, and with `overwrite` in place of an older checkpoint's files only.

    record: what goes into `grasp_config.json`.  card: the model card.  numbers: what goes into `grasp_report.json`.
    sources: what it was made from, which it may not replace.
    Raises OptionError on a bad shard size, CheckpointError when it cannot be written. The record, whose plan replays,
    is kept somewhere else then, and the message says where.
    """
    check_shard_size(max_shard_size)
    with _record_kept(record, numbers, Path(tempfile.gettempdir())):
        check_apart(output, sources)
        check_output(output, overwrite=overwrite)
    with (
        _record_kept(record, numbers, resolved(output).parent, Path(tempfile.gettempdir())),
        staged_folder(output, overwrite=overwrite) as folder,
    ):
        try:
            with savable(model) as generation:
                save_sharded(model, _read_from(model), folder, max_shard_size)
            write_generation(generation, folder)
            if tokenizer is not None:
                tokenizer.save_pretrained(folder)
        except OSError:
            raise
        except Exception as error:  # safetensors reports a full disk as an error type of its own
            raise CheckpointError(f"the output folder {output} cannot be written: {error}") from None
        _write_record(folder, record, numbers)
        if card:
            (folder / "README.md").write_text(card, encoding="utf-8")


def tensors_to_save(model: PreTrainedModel, max_shard_size: int | str = "5GB") -> Iterator[Tensor]:
    """What `save_checkpoint` reads of a model, in the same order."""
    tensor_of = _read_from(model)
    return (tensor_of(name) for names in files_of(model, max_shard_size).values() for name in names)


def _read_from(model: PreTrainedModel) -> Callable[[str], Tensor]:
    """Gives the model's parameters, also of one whose layers are not in memory."""
    store, state = store_of(model), model.state_dict()
    names = frozenset[str]() if store is None else store.names
    return lambda name: store.read(name) if store is not None and name in names else state[name]


def check_shard_size(size: int | str) -> None:
    """Raise OptionError unless transformers can split weights by this size; called before any long work starts."""
    try:
        split_torch_state_dict_into_shards({}, max_shard_size=size)
        positive = (float(size.strip()[:-2]) if isinstance(size, str) else size) > 0
    except (ValueError, OverflowError, TypeError, AttributeError):
        positive = False
    if not positive:
        raise OptionError("max_shard_size", size, "should be a size like 2GB or 500MB")


def _write_record(folder: Path, record: Record, numbers: ReportNumbers | None) -> None:
    if numbers is not None:
        write_json(folder / NUMBERS_NAME, numbers.to_dict())
    write_json(folder / RECORD_NAME, record.to_dict())


@contextmanager
def _record_kept(record: Record, numbers: ReportNumbers | None, *folders: Path) -> Iterator[None]:
    """Keep the record in the first of the folders that can be written if no checkpoint comes to be."""
    try:
        yield
    except UnmovedError:
        raise  # the whole checkpoint is kept
    except CheckpointError as error:
        if record.plan is None or (file := _kept(record, numbers, folders)) is None:
            raise
        raise CheckpointError(f"{error}; --plan {file} makes the checkpoint again") from None


def _kept(record: Record, numbers: ReportNumbers | None, folders: Sequence[Path]) -> Path | None:
    for folder in folders:
        try:
            own = Path(tempfile.mkdtemp(prefix="grasprune-unsaved-", dir=folder))
        except OSError:
            continue
        try:
            _write_record(own, record, numbers)
            return own / RECORD_NAME
        except CheckpointError:
            shutil.rmtree(own)
    return None


def needs_code(model_type: str) -> bool:
    """Whether models of this type are classes of ours; a stock model, with zeros in it or not, needs no code."""
    return any(family.pruned_type == model_type for family in FAMILIES.values())


def load_pruned_model(
    checkpoint: str | os.PathLike[str],
    *,
    dtype: str | torch.dtype = "auto",
    device: str = "auto",
    device_map: str | Mapping[str, Any] | None = None,
    attn_implementation: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """A pruned model, every tensor checked, from a folder or a Hub name.

    device_map, attn_implementation, revision: as transformers takes them; the first needs accelerate.
    Raises CheckpointError for a model that is not pruned, or when a tensor is missing or has the wrong shape.
    """
    source = str(checkpoint)
    config = load_config(source, trust_remote_code=trust_remote_code, revision=revision)
    if not needs_code(config.model_type) and read_record(source, revision) is None:
        raise CheckpointError(f"{source} is not a pruned checkpoint: load it with AutoModelForCausalLM.from_pretrained")
    return load_model(
        source,
        dtype=dtype,
        device=device,
        device_map=device_map,
        attn_implementation=attn_implementation,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )


def read_record(checkpoint: str | os.PathLike[str], revision: str | None = None) -> Record | None:
    """The content of a checkpoint's `grasp_config.json`, or None when it has none. checkpoint: folder or Hub name.

    Raises CheckpointError, with the field, where it is damaged.
    """
    path = optional_file(str(checkpoint), RECORD_NAME, revision)
    return None if path is None else Record.read(path)


def read_numbers(checkpoint: str | os.PathLike[str], revision: str | None = None) -> ReportNumbers | None:
    """The content of a checkpoint's `grasp_report.json`, or None when it has none; arguments and errors as above."""
    path = optional_file(str(checkpoint), NUMBERS_NAME, revision)
    return None if path is None else ReportNumbers.read(path)


def read_plan(path: str | os.PathLike[str]) -> tuple[PruningPlan, Record]:
    """The plan in a checkpoint folder or in its `grasp_config.json`, and the whole record; PlanError without one."""
    file = Path(path) / RECORD_NAME if os.path.isdir(path) else Path(path)
    try:
        record = Record.read(file)
    except OSError as error:
        raise PlanError(f"{file} holds no pruning plan: {error.strerror}") from None
    except CheckpointError as error:
        raise PlanError(f"{file} holds no pruning plan: {str(error).removeprefix(f'{file}: ')}") from None
    if record.plan is None:
        raise PlanError(f"{file} holds no pruning plan: single weights were set to zero, no units were cut")
    return replace(record.plan, source=file.absolute()), record
