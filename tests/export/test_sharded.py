"""A checkpoint that is written tensor by tensor has the bytes of one that is written from memory."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor
from transformers import PreTrainedModel

from optimum_grasprune import load_pruned_model
from optimum_grasprune.export.sharded import _header, _laid_out, save_sharded
from optimum_grasprune.families import family_of
from optimum_grasprune.loading import empty_model
from optimum_grasprune.surgery import build_pruned_model, keep_units
from tests.conftest import make_model
from tests.tiny_models import some_plan, tiny_model

CASES = [("LLaMA", "gqa"), ("LLaMA", "tied"), ("Gemma 3", "mixed"), ("OPT", "biases"), ("Phi-3", "gqa")]


def emptied(model: PreTrainedModel) -> PreTrainedModel:
    empty = empty_model(copy.deepcopy(model.config))
    empty.generation_config = copy.deepcopy(model.generation_config)
    return empty


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize(("layers", "dtype", "size"), [(3, torch.bfloat16, "5GB"), (11, torch.float32, "20KB")])
@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_files_are_those_of_save_pretrained(
    case: tuple[str, str], layers: int, dtype: torch.dtype, size: str, tmp_path: Path
) -> None:
    kinds = {"layer_types": ["sliding_attention"] * layers} if case[0] == "Gemma 3" else {}
    model = tiny_model(*case, num_hidden_layers=layers, **kinds).to(dtype)
    pruned = build_pruned_model(model, some_plan(model), family_of(model.config))
    empty, asked = emptied(pruned), list[str]()

    def tensor_of(name: str) -> Tensor:
        asked.append(name)
        return pruned.get_parameter(name)

    save_sharded(empty, tensor_of, tmp_path / "by-tensor", size)
    pruned.save_pretrained(tmp_path / "whole", max_shard_size=size)
    found, expected = files(tmp_path / "by-tensor"), files(tmp_path / "whole")
    assert found == expected and (size == "5GB" or "model.safetensors.index.json" in found)
    assert len(asked) == len(set(asked))


def test_a_cut_is_made_tensor_by_tensor(tmp_path: Path) -> None:
    model = make_model()
    plan, family = some_plan(model), family_of(model.config)
    pruned = build_pruned_model(model, plan, family)
    slots = {slot.parameter: (slot, block) for block in family.blocks(model) for slot in block.slots}

    def tensor_of(name: str) -> Tensor:
        tensor = model.get_parameter(name)
        if name not in slots:
            return tensor
        slot, block = slots[name]
        group = plan.group(block.address)
        return keep_units(tensor, slot, group.kept, group.count)

    save_sharded(emptied(pruned), tensor_of, tmp_path)
    loaded = load_pruned_model(tmp_path).state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in pruned.state_dict().items())


def test_a_tensor_of_another_shape_or_dtype(tmp_path: Path) -> None:
    model = make_model()
    with pytest.raises(ValueError, match=r"weight is \(1,\), torch.float32, and not \(258, 32\), torch.float32"):
        save_sharded(emptied(model), lambda _: torch.zeros(1), tmp_path)
    with pytest.raises(ValueError, match="torch.float64, and not .* torch.float32"):
        save_sharded(emptied(model), lambda name: model.get_parameter(name).double(), tmp_path)


DTYPES = st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64])
NAMES = st.text('abz.0129_"ü', min_size=1, max_size=6)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(NAMES, st.tuples(DTYPES, st.lists(st.integers(0, 3), max_size=3)), min_size=1, max_size=6))
def test_a_file_is_laid_out_as_safetensors_does(kinds: dict[str, tuple[torch.dtype, list[int]]]) -> None:
    tensors = {name: torch.zeros(shape, dtype=dtype) for name, (dtype, shape) in kinds.items()}
    header = _header({name: tensors[name] for name in _laid_out(tensors)})
    assert save(tensors, metadata={"format": "pt"}).startswith(header)
