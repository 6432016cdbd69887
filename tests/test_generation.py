"""What the dense model generates with comes through, or is left out by name; it never stops a checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast

from optimum_grasprune import GRASPConfig, GRASPPruner, load_pruned_model
from optimum_grasprune.errors import GraspruneWarning
from optimum_grasprune.loading import load_model
from tests.conftest import make_model, make_tokenizer

PATTERNS = ("units", "2:4")
ODD = [
    {"temperature": 0.9, "top_p": 0.6},  # as Vicuna ships
    {"length_penalty": 2.0},
    {"pad_token_id": -1},
    {"num_beams": 4, "num_return_sequences": 3, "made_up": {"by": [1, 2]}},
]


@pytest.fixture
def saved(tokenizer: PreTrainedTokenizerFast, corpus_file: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Prunes a model, saves it, and returns what is in its generation_config.json."""

    def prune(model: Any, pattern: str = "units") -> dict[str, Any]:
        method = "magnitude" if pattern == "units" else "statistical"
        config = GRASPConfig(method=method, pattern=pattern, dataset=str(corpus_file), num_samples=2, seq_len=8)
        pruner = GRASPPruner(config)
        pruner.prune_model(model, tokenizer)
        pruner.save(tmp_path / "out")
        load_pruned_model(tmp_path / "out")
        return json.loads((tmp_path / "out" / "generation_config.json").read_text())

    return prune


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("settings", ODD)
def test_settings_that_transformers_only_reads_are_kept(
    saved: Callable[..., dict[str, Any]], model_folder: Path, tmp_path: Path, settings: dict[str, Any], pattern: str
) -> None:
    shutil.copytree(model_folder, tmp_path / "dense")
    (tmp_path / "dense" / "generation_config.json").write_text(json.dumps(settings))
    found = saved(AutoModelForCausalLM.from_pretrained(tmp_path / "dense"), pattern)
    assert found.pop("transformers_version")
    assert found == settings


def test_settings_in_an_old_config_json_are_kept(
    saved: Callable[..., dict[str, Any]], model_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(model_folder, tmp_path / "dense")
    (tmp_path / "dense" / "generation_config.json").unlink()
    config = json.loads((model_folder / "config.json").read_text())
    (tmp_path / "dense" / "config.json").write_text(json.dumps({**config, "temperature": 0.9}))
    assert saved(AutoModelForCausalLM.from_pretrained(tmp_path / "dense"))["temperature"] == 0.9


@pytest.mark.parametrize("pattern", PATTERNS)
def test_settings_on_the_configuration_move(saved: Callable[..., dict[str, Any]], pattern: str) -> None:
    model = make_model()
    model.config.temperature = 0.7
    with pytest.warns(UserWarning, match=r"temperature=0.7 moves from the model's config to its generation_config"):
        assert saved(model, pattern)["temperature"] == 0.7
    assert model.config.temperature == 0.7  # the user's own stays as it was


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("max_new_tokens", 0, "must be greater than 0"),
        ("num_return_sequences", 3, "Greedy methods"),
        ("early_stopping", "perhaps", "must be a boolean or 'never'"),
        ("streamer", "stdout", "not a valid argument"),
        ("favourite", torch.ones(1), "not JSON serializable"),
    ],
)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_settings_that_could_not_be_read_back_are_left_out(
    saved: Callable[..., dict[str, Any]], pattern: str, name: str, value: object, reason: str
) -> None:
    model = make_model()
    model.generation_config = GenerationConfig(eos_token_id=1)
    setattr(model.generation_config, name, value)
    model.generation_config.top_k = 7
    with pytest.warns(UserWarning, match=f"{name}=.* is left out of the generation settings: .*{reason}"):
        found = saved(model, pattern)
    assert name not in found and found["top_k"] == 7
    assert getattr(model.generation_config, name) is value


def test_warnings_come_before_the_work(tokenizer: PreTrainedTokenizerFast, corpus_file: Path) -> None:
    model = make_model()
    model.generation_config.max_new_tokens = 0
    config = GRASPConfig(dataset="/nowhere/corpus.txt", num_samples=2, seq_len=8)
    with pytest.warns(UserWarning, match="max_new_tokens"), pytest.raises(Exception, match="no such file"):
        GRASPPruner(config).prune_model(model, tokenizer)


def test_the_pruned_model_has_settings_of_its_own(tokenizer: PreTrainedTokenizerFast, corpus_file: Path) -> None:
    for pattern, method in zip(PATTERNS, ("magnitude", "statistical"), strict=True):
        model = make_model()
        model.generation_config.eos_token_id = [1]
        config = GRASPConfig(method=method, pattern=pattern, dataset=str(corpus_file), num_samples=2, seq_len=8)
        pruned = GRASPPruner(config).prune_model(model, tokenizer)
        pruned.generation_config.eos_token_id.append(0)
        pruned.generation_config.max_new_tokens = 5
        assert model.generation_config.eos_token_id == [1]
        assert model.generation_config.max_new_tokens is None


@pytest.mark.parametrize(("pattern", "method"), [("units", "magnitude"), ("2:4", "statistical")])
def test_the_pruned_model_has_what_moved_or_was_left_out_before_it_is_saved(
    pattern: str, method: str, tokenizer: PreTrainedTokenizerFast, corpus_file: Path
) -> None:
    model = make_model()
    model.config.temperature = 0.7
    model.generation_config.max_new_tokens = 0
    config = GRASPConfig(method=method, pattern=pattern, dataset=str(corpus_file), num_samples=2, seq_len=8)
    with pytest.warns(UserWarning, match=r"temperature=0.7 moves|max_new_tokens=0 is left out"):
        pruned = GRASPPruner(config).prune_model(model, tokenizer)
    assert pruned.generation_config.temperature == 0.7 and not hasattr(pruned.config, "temperature")
    assert pruned.generation_config.max_new_tokens is None


def test_settings_made_after_pruning_are_saved(
    tokenizer: PreTrainedTokenizerFast, corpus_file: Path, tmp_path: Path
) -> None:
    pruner = GRASPPruner(GRASPConfig(method="magnitude", dataset=str(corpus_file)))
    pruned = pruner.prune_model(make_model(), tokenizer)
    pruned.generation_config = GenerationConfig(length_penalty=3.0)
    pruned.config.top_k = 3
    with pytest.warns(UserWarning, match="top_k=3 moves"):
        pruner.save(tmp_path / "out")
    assert pruned.config.top_k == 3 and pruned.generation_config.top_k is None
    read = GenerationConfig.from_pretrained(tmp_path / "out")
    assert (read.length_penalty, read.top_k) == (3.0, 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"max_new_tokens": 0, "top_k": 7}', "max_new_tokens=0 is left out of the generation settings"),
        ('{"early_stopping": "perhaps", "top_k": 7}', "early_stopping='perhaps' is left out"),
        ('{"top_k": 7, "cache_implementation": "magic"}', "cache_implementation='magic' is left out"),
        ("{", "generation_config.json of .* is no JSON object and is left out"),
        ("[1]", "generation_config.json of .* is no JSON object and is left out"),
    ],
)
def test_settings_that_cannot_be_read_stop_nothing(
    content: str, message: str, model_folder: Path, corpus_file: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "dense"
    shutil.copytree(model_folder, folder)
    (folder / "generation_config.json").write_text(content)
    with pytest.warns(GraspruneWarning, match=message):
        model = load_model(str(folder))
    pruner = GRASPPruner(GRASPConfig(method="magnitude", dataset=str(corpus_file)))
    pruner.prune_model(model, make_tokenizer())
    pruner.save(tmp_path / "pruned")
    assert GenerationConfig.from_pretrained(tmp_path / "pruned").top_k == (7 if "top_k" in content else None)
