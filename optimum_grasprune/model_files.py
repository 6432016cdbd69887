"""Where a model comes from, a folder or a Hub repository, looked at before anything is loaded: what it is, if no model.

Hub names go through transformers' cache, so that a file which is read here is not fetched twice.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypedDict

from safetensors import safe_open
from transformers.utils.hub import cached_file

from .errors import CheckpointError, ModelError, OptionError, first_line
from .reading import json_in

ADAPTER_FILE = "adapter_config.json"
_INDEX_FILE, _WEIGHTS_FILE = "model.safetensors.index.json", "model.safetensors"
_PLAIN_TYPES = frozenset({"F64", "F32", "F16", "BF16"})
_BIT_KEYS = ("bits", "num_bits", "nbits", "w_bit", "weight_bits")


class ReadAs(TypedDict, total=False):
    """How a model is read: whether code that comes with it may run, and the branch, tag or commit of a repository."""

    trust_remote_code: bool
    revision: str | None


def optional_file(source: str, name: str, revision: str | None = None) -> Path | None:
    """A file of a model folder or Hub repository; None where there is none, or the Hub cannot be reached."""
    if os.path.exists(source):  # unlike Path's, these never raise: a name may be too long for any file
        path = Path(source) / name
        return path if os.path.isfile(path) else None
    try:
        found = cached_file(
            source,
            name,
            revision=revision,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except (OSError, ValueError):  # no such repository or revision: who reads config.json says so
        return None
    return None if found is None else Path(found)


def commit_of(source: str, revision: str | None = None) -> str | None:
    """The commit of a Hub repository that is read; None for a folder."""
    config = None if os.path.exists(source) else optional_file(source, "config.json", revision)
    return None if config is None else config.parent.name  # the cache keeps a folder for each commit


def check_revision(revision: str | None, sources: Iterable[str]) -> None:
    """Raise OptionError for a revision that nothing is read at, since all sources are folders."""
    folders = [source for source in sources if os.path.exists(source)]
    if revision is not None and len(folders) == len(list(sources)):
        raise OptionError("revision", revision, f"{folders[0]} is a folder; only models of the Hub have revisions")


def check_source(source: str, revision: str | None = None) -> None:
    """Raise ModelError, in words that help, for what is no folder or repository of one whole model in safetensors."""
    path = Path(source)
    looks_local = source.startswith((".", "/", "~")) or (source.count("/") != 1 and "/" in source)
    if path.suffix == ".gguf" and (os.path.exists(path) or looks_local):
        raise ModelError(
            f"{source} is a GGUF file, which is quantised or converted: give the model that it was made from"
        )
    if not os.path.isdir(path) and (os.path.exists(path) or looks_local):
        raise ModelError(f"the model folder {source} does not exist")
    _refuse_adapter(source, revision)
    if not os.path.isdir(path):
        return
    if not (path / "config.json").is_file():
        found = next(path.glob("*.gguf"), None)
        if found is not None:
            raise ModelError(f"{source} holds a GGUF file ({found.name}): give the model that it was made from")
        raise ModelError(f"the model folder {source} has no config.json")


def _refuse_adapter(source: str, revision: str | None) -> None:
    # transformers adds an adapter to the model without a word where peft is installed, and leaves it out elsewhere.
    file = optional_file(source, ADAPTER_FILE, revision)
    if file is None:
        return
    try:
        base = json_in(file).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        base = None
    merge = "PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(folder)"
    if optional_file(source, "config.json", revision) is None:
        of = f" for {base}" if base else ""
        raise ModelError(f"{source} is a PEFT adapter{of}, not a model: merge it first, as in {merge}")
    raise ModelError(
        f"a PEFT adapter ({ADAPTER_FILE}) lies beside the model in {source}: merge it first, as in {merge}, "
        "or move it away"
    )


def quantization_of(config: Any) -> str | None:
    """How a configuration says that the weights are quantised, as in "gptq, 4 bits"; None where it says nothing."""
    entry = getattr(config, "quantization_config", None)
    older = getattr(config, "compression_config", None)  # what compressed-tensors called it at first
    if not entry and not older:
        return None
    found: Any = entry or older
    values: Mapping[str, Any] = found if isinstance(found, Mapping) else found.to_dict()
    loaded = {"load_in_4bit": 4, "load_in_8bit": 8}
    flagged = next((bits for name, bits in loaded.items() if values.get(name)), None)
    method = values.get("quant_method") or ("bitsandbytes" if flagged else None if entry else "compressed-tensors")
    bits = flagged or _bits(values)
    name = str(getattr(method, "value", method)) if method else "by a method that config.json does not name"
    return f"{name}, {bits} bits" if bits else name


def _bits(values: Mapping[str, Any]) -> int | None:
    for key in _BIT_KEYS:
        if isinstance(values.get(key), int):
            return values[key]
    # Weights and activations may both say; it is the weights that are asked for.
    children = [(name, value) for name, value in values.items() if isinstance(value, Mapping)]
    children.sort(key=lambda child: not child[0].startswith("weight"))
    return next((bits for _, value in children if (bits := _bits(value)) is not None), None)


def check_stored(source: str, shapes: Mapping[str, tuple[int, ...]], revision: str | None = None) -> None:
    """Raise ModelError for weights that are stored in bits which only a quantised model's loader could read.

    Raises CheckpointError where they are damaged, or have other shapes than the model's, by name.
    Reads the headers of safetensors files alone. transformers would cast such tensors as if they were numbers, and make
    room for whatever shapes config.json asks for before it looks at those that there are.
    """
    mismatched: list[tuple[str, tuple[int, ...]]] = []
    numbers = 0
    for file in weight_files(source, revision):
        try:
            with safe_open(file, framework="pt") as tensors:
                stored = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
                types = {name: tensor.get_dtype() for name, tensor in stored.items()}
                found = {name: tuple(tensor.get_shape()) for name, tensor in stored.items()}
        except Exception as error:  # safetensors has an error type of its own for a damaged file
            raise CheckpointError(f"the weights of {source} cannot be read: {first_line(error)}") from None
        for name, kind in types.items():
            if kind not in _PLAIN_TYPES and "weight" in name:
                raise ModelError(
                    f"the weights of {source} are quantised ({name} is stored as {kind}), and its "
                    "config.json does not say how: give the unquantised model"
                )
        mismatched += ((name, shape) for name, shape in found.items() if shapes.get(name, shape) != shape)
        numbers += sum(map(math.prod, found.values()))
    if mismatched:
        name, shape = min(mismatched)
        raise CheckpointError(misshapen(source, name, shape, shapes[name], len(mismatched)))
    asked = sum(map(math.prod, shapes.values()))
    if numbers and asked > 2 * numbers:  # tied tensors are stored once
        raise CheckpointError(
            f"the weights of {source} are damaged: {numbers:,} numbers are stored, and config.json asks for {asked:,}"
        )


def misshapen(source: str, name: str, found: tuple[int, ...], wanted: tuple[int, ...], count: int) -> str:
    """What is said of a tensor of another shape than its model's. count: of all such tensors."""
    more = f" and {count - 1} more" if count > 1 else ""
    return f"the weights of {source} are damaged: {name} has the shape {found}, and config.json asks for {wanted}{more}"


def weight_files(source: str, revision: str | None = None) -> list[Path]:
    """The safetensors files that hold the weights of a model; none where it has no such files.

    Raises CheckpointError for a damaged index.
    """
    index = optional_file(source, _INDEX_FILE, revision)
    if index is None:
        names = {_WEIGHTS_FILE}
    else:
        try:
            names = set(json_in(index)["weight_map"].values())
            if not all(isinstance(name, str) and Path(name).name == name for name in names):
                raise ValueError("a shard lies beside its index")
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise CheckpointError(f"the weights of {source} cannot be read: {_INDEX_FILE} is damaged") from None
    files = (optional_file(source, name, revision) for name in sorted(names))
    return [file for file in files if file is not None]
