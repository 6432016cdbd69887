"""A streamed model has what `from_pretrained` reads, and says in one line what it cannot read."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from optimum_grasprune.admission import check_model
from optimum_grasprune.errors import CheckpointError, ModelError, OptionError, UnsupportedFamilyError
from optimum_grasprune.execution import StreamedModel
from optimum_grasprune.layer_store import LayerStore, store_of
from optimum_grasprune.streamed_loading import streamed_model
from tests.conftest import make_model
from tests.tiny_models import CASES, tiny_model

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def store(model: PreTrainedModel) -> LayerStore:
    found = store_of(model)
    assert found is not None
    return found


def read(model: PreTrainedModel, name: str, tensor: Tensor) -> Tensor:
    return store(model).read(name) if tensor.is_meta else tensor


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_model().save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_everything_is_as_from_pretrained_reads_it(case: tuple[str, str], tmp_path: Path) -> None:
    tiny_model(*case).save_pretrained(tmp_path, max_shard_size="20KB")
    streamed, whole = streamed_model(str(tmp_path)), AutoModelForCausalLM.from_pretrained(tmp_path)
    check_model(streamed)
    assert type(streamed) is type(whole) and not streamed.training
    assert streamed.config.to_dict() == whole.config.to_dict()
    assert streamed.generation_config.to_dict() == whole.generation_config.to_dict()
    for part in ("named_parameters", "named_buffers"):
        found, expected = (list(getattr(each, part)(remove_duplicate=False)) for each in (streamed, whole))
        assert [name for name, _ in found] == [name for name, _ in expected]
        for (name, tensor), (_, wanted) in zip(found, expected, strict=True):
            assert (tensor.dtype, tensor.requires_grad) == (wanted.dtype, wanted.requires_grad)
            assert tensor.is_meta == (".layers." in name and part == "named_parameters")
            assert torch.equal(read(streamed, name, tensor), wanted), name
    assert len(list(streamed.parameters())) == len(list(whole.parameters()))  # tied ones are one


@pytest.mark.parametrize(("dtype", "expected"), [("auto", torch.float32), ("bfloat16", torch.bfloat16)])
def test_weights_come_in_the_dtype_that_is_asked_for(dtype: str, expected: torch.dtype, folder: Path) -> None:
    model = streamed_model(str(folder), dtype=dtype)
    assert {tensor.dtype for tensor in model.parameters()} == {model.dtype} == {expected}
    assert store(model).read("model.layers.0.mlp.up_proj.weight").dtype == expected
    assert StreamedModel(model).mean_loss(torch.arange(2, 22)[None]) > 0


def test_the_dtype_of_a_checkpoint_whose_configuration_does_not_say(folder: Path) -> None:
    make_model().bfloat16().save_pretrained(folder)
    values = json.loads((folder / "config.json").read_text())
    del values["dtype"]
    (folder / "config.json").write_text(json.dumps(values))
    assert streamed_model(str(folder)).dtype == torch.bfloat16


def rewritten(folder: Path, edit: dict[str, Tensor | None]) -> None:
    tensors = load_file(folder / WEIGHTS)
    for name, tensor in edit.items():
        tensors.pop(name, None)
        if tensor is not None:
            tensors[name] = tensor
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


NAME = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        ({NAME: None}, CheckpointError, f"are damaged: missing keys: {NAME}$"),
        ({NAME: torch.zeros(3, 2)}, CheckpointError, rf"are damaged: {NAME} has the shape \(3, 2\), and config.json"),
        ({"more.weight": torch.zeros(1)}, ModelError, "has a tensor more.weight, which is none of LlamaForCausalLM's"),
        ({NAME: torch.zeros(3, 2, dtype=torch.int8)}, ModelError, "are quantised .* is stored as I8"),
        ({"model.norm.weight": torch.full((32,), torch.nan)}, ModelError, "not finite, in model.norm.weight"),
    ],
)
def test_what_cannot_be_read(
    edit: dict[str, Tensor | None], error: type[Exception], message: str, folder: Path
) -> None:
    rewritten(folder, edit)
    with pytest.raises(error, match=message):
        streamed_model(str(folder))


def test_what_transformers_leaves_unread_is_left(folder: Path) -> None:
    rewritten(folder, {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)})
    AutoModelForCausalLM.from_pretrained(folder)
    assert StreamedModel(streamed_model(str(folder))).mean_loss(torch.arange(2, 22)[None]) > 0


def test_no_safetensors(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="has no weights in safetensors files"):
        streamed_model(str(folder))


def test_a_shard_is_missing(folder: Path) -> None:
    make_model().save_pretrained(folder, max_shard_size="20KB")
    (folder / json.loads((folder / INDEX).read_text())["weight_map"][NAME]).unlink()
    with pytest.raises(CheckpointError, match="are damaged: missing keys: .* and . more"):
        streamed_model(str(folder))


def test_tied_weights_that_differ(tmp_path: Path) -> None:
    model = make_model(tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    rewritten(tmp_path, {"lm_head.weight": model.lm_head.weight.detach().clone()})
    assert streamed_model(str(tmp_path)).lm_head.weight is not None
    rewritten(tmp_path, {"lm_head.weight": torch.zeros(258, 32)})
    differ = "model.embed_tokens.weight and lm_head.weight differ in"
    with pytest.raises(ModelError, match=f"{differ} {re.escape(str(tmp_path))}, and its configuration says"):
        streamed_model(str(tmp_path))


def test_other_refusals(folder: Path) -> None:
    with pytest.raises(OptionError, match="device='meta'"):
        streamed_model(str(folder), device="meta")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(ModelError, match="is quantised"):
        streamed_model(str(folder))
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}))
    with pytest.raises(UnsupportedFamilyError, match="model type 'gpt2' is not supported"):
        streamed_model(str(folder))


def test_files_that_go_away(folder: Path) -> None:
    found = store(streamed_model(str(folder)))
    with (folder / WEIGHTS).open("rb+") as stream:
        stream.truncate(100)
    with pytest.raises(CheckpointError, match="cannot be read any more: it ends too early"):
        found.read(NAME)
    (folder / WEIGHTS).unlink()
    for _ in range(2):  # a layer that was not read as a whole is not taken for one that is there
        with pytest.raises(CheckpointError, match="model.safetensors cannot be read any more: No such file"):
            found.fetch(1)
