from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from optimum_grasprune import GRASPConfig, GRASPPruner, load_pruned_model
from optimum_grasprune.errors import CheckpointError, PlanError
from optimum_grasprune.export.checkpoint import read_plan
from optimum_grasprune.loading import load_model
from tests.conftest import make_model, make_tokenizer


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, corpus_file: Path) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "pruned"
    pruner = GRASPPruner(GRASPConfig(method="random", dataset=str(corpus_file), num_samples=1, seq_len=8))
    pruner.prune_model(make_model(), make_tokenizer())
    pruner.save(folder)
    return folder


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in checkpoint.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_folder_is_complete_and_readable_by_others(checkpoint: Path) -> None:
    names = {file.name for file in checkpoint.iterdir()}
    assert names == {
        *("README.md", "config.json", "generation_config.json", "grasp_config.json", "model.safetensors"),
        *(
            "grasp_report.json",
            "configuration_grasp.py",
            "modeling_grasp.py",
            "tokenizer.json",
            "tokenizer_config.json",
        ),
    }
    assert all(file.stat().st_mode & stat.S_IRGRP for file in checkpoint.iterdir())
    config = json.loads((checkpoint / "config.json").read_text())
    assert set(config["auto_map"]) == {"AutoConfig", "AutoModel", "AutoModelForCausalLM"}
    assert "quantization_config" not in config


def test_checkpoint_without_the_output_bias_field_loads(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config.pop("output_bias", None)
    (copy / "config.json").write_text(json.dumps(config))
    model = load_pruned_model(copy)
    assert model.config.output_bias is False
    assert not any(name.endswith(".bias") for name in model.state_dict())


def test_missing_output_bias_is_an_error_that_names_it(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "output_bias": True}))
    with pytest.raises(CheckpointError, match=r"missing keys: model.layers.0.mlp.down_proj.bias and 5 more"):
        load_pruned_model(copy)


def test_missing_tensor_is_an_error_that_names_it(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"missing keys: model.layers.1.mlp.up_proj.weight"):
        load_pruned_model(copy)


def test_unexpected_tensor_is_an_error(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    tensors["model.layers.1.mlp.extra.weight"] = tensors["model.norm.weight"].clone()
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"unexpected keys: model.layers.1.mlp.extra.weight"):
        load_pruned_model(copy)


def test_wrong_shape_is_an_error(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"] = tensors["model.layers.0.mlp.up_proj.weight"][1:].clone()
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"weights of .* (damaged|cannot be read)"):
        load_pruned_model(copy)


def test_truncated_file_is_an_error(copy: Path) -> None:
    data = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="the weights of .* cannot be read"):
        load_model(str(copy))


def test_full_disk_during_a_real_save(
    monkeypatch: pytest.MonkeyPatch, tokenizer: PreTrainedTokenizerFast, corpus_file: Path, tmp_path: Path
) -> None:
    config = GRASPConfig(method="random", dataset=str(corpus_file), num_samples=1, seq_len=8)
    pruner = GRASPPruner(config)
    pruner.prune_model(make_model(), tokenizer)
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    original = type(pruner.model).save_pretrained

    def save_to_full_disk(model: object, folder: Path, **options: object) -> None:
        original(model, folder, **options)  # type: ignore[arg-type]
        with full.open("w") as device:
            device.write("x" * 10_000)

    monkeypatch.setattr(type(pruner.model), "save_pretrained", save_to_full_disk)
    with pytest.raises(CheckpointError, match="cannot be written: No space left on device") as failure:
        pruner.save(tmp_path / "out")
    (kept,) = tmp_path.iterdir()
    assert f"--plan {kept / 'grasp_config.json'} makes the checkpoint again" in str(failure.value)
    monkeypatch.undo()
    pruner.save(tmp_path / "first")
    again = GRASPPruner(config)
    again.replay(make_model(), tokenizer, *read_plan(kept))
    again.save(tmp_path / "again")
    for file in (tmp_path / "first").iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes(), file.name


def test_plan_from_folder_and_from_file(checkpoint: Path, tmp_path: Path) -> None:
    assert read_plan(checkpoint) == read_plan(checkpoint / "grasp_config.json")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(PlanError, match="holds no pruning plan"):
        read_plan(tmp_path / "other.json")
    with pytest.raises(PlanError, match="holds no pruning plan"):
        read_plan(tmp_path / "missing")
