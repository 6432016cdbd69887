"""From the command line: layers without attention or FFN, made, saved, replayed, pruned again, and looked at."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from optimum_grasprune import GRASPConfig, GRASPPruner, load_pruned_model
from optimum_grasprune.export.checkpoint import read_record
from tests.commands.conftest import Outcome
from tests.conftest import logits_of, make_model, make_tokenizer
from tests.tiny_models import tiny_model

Cli = Callable[..., Outcome]
TOKENS = torch.arange(2, 42).view(2, 20)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Gemma 3 with one KV head a layer: it can give up KV cache by whole layers only."""
    folder = tmp_path_factory.mktemp("whole") / "dense"
    tiny_model("Gemma 3", "one-kv-head").save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("method", ["grasprune", "fasp", "flap", "statistical", "taylor"])
def test_one_head_a_layer_gives_up_kv_cache(
    method: str, folder: Path, cli: Cli, corpus_file: Path, tmp_path: Path
) -> None:
    data = ("--dataset", corpus_file, "--num-samples", 6, "--seq-len", 24, "--epochs", 1, "--search-trials", 2)
    options = ("--kv-keep-ratio", 0.4, "--min-kv-groups", 0, "--keep-ratio", 0.6)
    outcome = cli("export", "-m", folder, "--method", method, *data, *options, tmp_path / "out")
    assert outcome.code == 0, outcome.error_lines
    layers = json.loads((tmp_path / "out" / "config.json").read_text())["per_layer_config"]
    assert sum(layer.get("num_key_value_heads", 1) == 0 for layer in layers.values()) == 2
    record = read_record(tmp_path / "out")
    assert record is not None and record.budget.kept.kv_cache == pytest.approx(1 / 3)
    assert "| 0 of 1 |" in (tmp_path / "out" / "README.md").read_text()
    again = cli("export", "-m", folder, "--plan", tmp_path / "out", tmp_path / "again")
    assert again.code == 0, again.error_lines
    expected = logits_of(load_pruned_model(tmp_path / "out"), TOKENS)
    assert torch.equal(logits_of(load_pruned_model(tmp_path / "again"), TOKENS), expected)
    shown = cli("inspect", "-m", tmp_path / "out", "--gpu-memory", "2GiB", "--context", 32)
    assert shown.code == 0, shown.error_lines


@pytest.mark.parametrize("compensation", ["both", "refit", "bias", "energy"])
def test_every_stage_goes_with_it_and_it_is_pruned_again(compensation: str, corpus_file: Path, tmp_path: Path) -> None:
    data = {"dataset": str(corpus_file), "num_samples": 6, "seq_len": 24, "epochs": 1}
    free = {"min_kv_groups": 0, "min_ffn_channels": 0, "compensation": compensation}
    model, config = make_model(), GRASPConfig(method="magnitude", keep_ratio=0.3, allocation="global", **free, **data)
    once = GRASPPruner(config).prune_model(model, make_tokenizer())
    widths = [once.config.per_layer_config[layer] for layer in range(3)]
    assert any(not own.num_key_value_heads or not own.intermediate_size for own in widths)
    twice = GRASPPruner(GRASPConfig(method="fasp", keep_ratio=0.7, **{**free, "compensation": "auto"}, **data))
    assert logits_of(twice.prune_model(once, make_tokenizer()), TOKENS).isfinite().all()
    twice.save(tmp_path / "twice")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "twice")
    assert torch.equal(logits_of(loaded, TOKENS), logits_of(twice.model, TOKENS))


def test_code_from_the_checkpoint_is_known_as_ours(remote_code: None, tmp_path: Path) -> None:
    free = {"min_kv_groups": 0, "min_ffn_channels": 0, "allocation": "global"}
    pruner = GRASPPruner(GRASPConfig(method="magnitude", keep_ratio=0.3, compensation="none", **free))
    pruner.prune_model(make_model(), make_tokenizer())
    folder = tmp_path / "pruned"
    pruner.save(folder)
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "grasp_llama_elsewhere"
    code = (folder / "configuration_grasp.py").read_text()
    (folder / "configuration_grasp.py").write_text(code.replace('"grasp_llama"', '"grasp_llama_elsewhere"'))
    (folder / "config.json").write_text(json.dumps(config))
    remote = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    remote.config.model_type = type(remote.config).model_type = "grasp_llama"
    again = GRASPPruner(GRASPConfig(method="magnitude", keep_ratio=0.8, compensation="none"))
    assert logits_of(again.prune_model(remote, make_tokenizer()), TOKENS).isfinite().all()
