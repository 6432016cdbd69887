"""A model that stays in its files is pruned to the checkpoint that comes of it in memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast

from optimum_grasprune import GRASPConfig, GRASPPruner, load_pruned_model
from optimum_grasprune.errors import OptionError
from optimum_grasprune.export.checkpoint import read_plan
from optimum_grasprune.layer_store import store_of
from optimum_grasprune.streamed_loading import streamed_model
from tests.conftest import logits_of, make_model
from tests.test_pruner import hashes
from tests.tiny_models import CASES, tiny_model

TOKENS = torch.arange(2, 62).view(2, 30)
FEW = {"num_samples": 4, "seq_len": 24, "epochs": 1, "held_out": 2, "search_trials": 0, "diagonal_samples": 3}


def saved(model: Any, config: GRASPConfig, tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    pruned = GRASPPruner(config).prune(model, tokenizer, inplace=True)
    pruned.save(folder, max_shard_size="20KB")
    return folder


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_the_same_bytes_come_of_the_files(case: Any, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    model = tiny_model(*case)
    model.save_pretrained(tmp_path / "dense", max_shard_size="20KB")
    config = GRASPConfig(method="magnitude", keep_ratio=0.6)
    streamed = streamed_model(str(tmp_path / "dense"))
    model.config.name_or_path = model.name_or_path = str(tmp_path / "dense")
    whole = hashes(saved(model, config, tokenizer, tmp_path / "whole"))
    assert hashes(saved(streamed, config, tokenizer, tmp_path / "streamed")) == whole


@pytest.mark.parametrize(
    "recipe",
    [
        {},
        {"compensation": "both", "least_squares": "robust", "kl_weight": 0.5},
        {"method": "flap"},
        {"method": "fasp"},
        {"method": "statistical"},
        {"method": "wanda_sp", "held_out": 0},
        {"method": "taylor", "batch_size": 2},
        {"method": "ddp", "batch_size": 2},
    ],
    ids=str,
)
def test_the_same_plan_and_weights_come_of_the_files(
    recipe: dict[str, Any], corpus_file: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    make_model().save_pretrained(tmp_path / "dense")
    config = GRASPConfig(**{"keep_ratio": 0.5, "dataset": str(corpus_file), **FEW, **recipe})
    folders = [
        saved(model, config, tokenizer, tmp_path / name)
        for name, model in {"whole": make_model(), "streamed": streamed_model(str(tmp_path / "dense"))}.items()
    ]
    plans = [json.loads((folder / "grasp_config.json").read_text()) for folder in folders]
    assert [group["kept"] for group in plans[0]["plan"]["groups"]] == [
        group["kept"] for group in plans[1]["plan"]["groups"]
    ]
    assert plans[0]["compensation"] == plans[1]["compensation"]
    whole, streamed = (
        {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}
        for folder in folders
    )
    torch.testing.assert_close(streamed, whole, rtol=2e-3, atol=2e-4)
    found, expected = (logits_of(load_pruned_model(folder), TOKENS) for folder in folders[::-1])
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)


def test_several_ratios_and_replays_come_of_the_files_too(
    corpus_file: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    make_model().save_pretrained(tmp_path / "dense")
    config = GRASPConfig(**{"dataset": str(corpus_file), **FEW})
    streamed = streamed_model(str(tmp_path / "dense"))
    pruner = GRASPPruner(config)
    for pruned in pruner.prune_many(streamed, tokenizer, [0.7, 0.5]):
        pruned.save(tmp_path / f"keep-{pruned.record.config.keep_ratio}", max_shard_size="20KB")
        assert store_of(pruned.model) is not None and store_of(pruned.model) is not store_of(streamed)
    replayed = GRASPPruner().replay(streamed, tokenizer, *read_plan(tmp_path / "keep-0.7"))
    replayed.save(tmp_path / "replayed", max_shard_size="20KB")
    first, second = (hashes(tmp_path / name) for name in ("keep-0.7", "replayed"))
    weights = [name for name in first if name.endswith(".safetensors")]
    assert weights and all(first[name] == second[name] for name in weights)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "block_influence"}, "method=.block_influence.: drops whole layers, and .*--runner whole"),
        ({"method": "statistical", "pattern": "2:4"}, "pattern=.2:4.: cuts single weights, and .*--runner whole"),
        ({"recover": "distill"}, "recover=.distill.: trains the weights, and .*--runner whole"),
    ],
    ids=str,
)
def test_what_needs_the_model_in_memory_is_refused(
    options: dict[str, Any], message: str, corpus_file: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    make_model().save_pretrained(tmp_path)
    config = GRASPConfig(keep_ratio=0.5, dataset=str(corpus_file), **options)
    with pytest.raises(OptionError, match=message):
        GRASPPruner(config).prune(streamed_model(str(tmp_path)), tokenizer)
