"""Writing a checkpoint with one tensor in memory at a time: the files that `save_pretrained` would write."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from huggingface_hub import StateDictSplit, split_torch_state_dict_into_shards
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from ..progress import bar, without_library_bars

_DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
"""Names of data types in the files, in the order in which safetensors lays out their tensors."""


@without_library_bars()
def save_sharded(
    empty: PreTrainedModel,
    tensor_of: Callable[[str], Tensor],
    folder: Path,
    max_shard_size: int | str = "5GB",
) -> None:
    """Write a model into a folder, byte by byte as `save_pretrained` writes one that `from_pretrained` made.

    empty: the model with its parameters on the meta device, in the dtypes that are written; what it generates with goes
    along.  tensor_of: from the name of a parameter to its values, on any device; asked for each once, file by file, and
    let go when they are written.
    ValueError for a tensor of another shape or dtype than the model's; OSError when the folder cannot be written.
    """
    empty.save_pretrained(folder, state_dict={})  # the configuration, settings of generation, code files
    wanted = _saved(empty)
    split = split_torch_state_dict_into_shards(wanted, max_shard_size=max_shard_size)
    with bar(len(wanted), "writing", "tensor") as stage:
        for file, names in _by_file(split, wanted).items():
            _write_shard(folder / file, {name: wanted[name] for name in names}, tensor_of, stage.update)
    if split.is_sharded:
        index = {
            "metadata": {"total_parameters": empty.num_parameters(), **split.metadata},
            "weight_map": split.tensor_to_filename,
        }
        content = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(content, encoding="utf-8")


def files_of(model: PreTrainedModel, max_shard_size: int | str = "5GB") -> dict[str, list[str]]:
    """Names of the tensors in every file that `save_sharded` writes, in the order in which it asks for them."""
    wanted = _saved(model)
    return _by_file(split_torch_state_dict_into_shards(wanted, max_shard_size=max_shard_size), wanted)


def _saved(model: PreTrainedModel) -> dict[str, Tensor]:
    """The tensors that are written: where several are one parameter, the one that the others follow.

    They stand in the order in which transformers shares them out to files: by their names, layers by their numbers.
    """
    followers = {
        follower
        for follower, leader in model.all_tied_weights_keys.items()
        if model.get_parameter(follower) is model.get_parameter(leader)
    }
    left_out = followers | set(model._keys_to_ignore_on_save or ())
    state = model.state_dict()
    return {name: state[name] for name in sorted(state.keys() - left_out, key=_by_number)}


def _by_number(name: str) -> list[tuple[int, int | str]]:
    return [(0, int(part)) if part.isdigit() else (1, part) for part in name.split(".")]


def _write_shard(
    file: Path, wanted: Mapping[str, Tensor], tensor_of: Callable[[str], Tensor], written: Callable[[], None]
) -> None:
    """One safetensors file. wanted: tensors with the shapes and dtypes of its tensors, by name, in their order."""
    with file.open("wb") as stream:
        stream.write(_header(wanted))
        for name in wanted:
            tensor = tensor_of(name).detach()
            if tensor.shape != wanted[name].shape or tensor.dtype != wanted[name].dtype:
                raise ValueError(
                    f"{name} is {tuple(tensor.shape)}, {tensor.dtype}, "
                    f"and not {tuple(wanted[name].shape)}, {wanted[name].dtype}"
                )
            stream.write(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
            written()


def _by_file(split: StateDictSplit, wanted: Mapping[str, Tensor]) -> dict[str, list[str]]:
    return {
        file: _laid_out({name: wanted[name] for name in names}) for file, names in split.filename_to_tensors.items()
    }


def _laid_out(wanted: Mapping[str, Tensor]) -> list[str]:
    """The order of tensors in a safetensors file: the dtypes of the strictest alignment first, then by name."""
    rank = {dtype: place for place, dtype in enumerate(_DTYPES)}
    return sorted(wanted, key=lambda name: (rank[wanted[name].dtype], name))


def _header(wanted: Mapping[str, Tensor]) -> bytes:
    """The header of a safetensors file with these tensors, in this order: its length, JSON, spaces to eight bytes."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in wanted.items():
        start, end = end, end + math.prod(tensor.shape) * tensor.dtype.itemsize
        entries[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
