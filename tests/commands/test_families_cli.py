"""Every family through the command line, and what no family takes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from optimum_grasprune.families import FAMILIES
from tests.commands.conftest import Outcome
from tests.conftest import make_tokenizer
from tests.tiny_models import VARIANTS, tiny_model

Cli = Callable[..., Outcome]
WINDOWS = {"Ministral": [8, None, 8], "Gemma 3": [8, None, 8]}
"""Of the plain variants of families that have any."""


@pytest.mark.parametrize("name", VARIANTS)
def test_exported_inspected_and_measured(name: str, cli: Cli, corpus_file: Path, tmp_path: Path) -> None:
    tiny_model(name).save_pretrained(tmp_path / "dense")
    make_tokenizer().save_pretrained(tmp_path / "dense")
    dense, pruned, result = tmp_path / "dense", tmp_path / "pruned", tmp_path / "result.json"
    data = ("--dataset", corpus_file, "--seq-len", 24)

    outcome = cli("export", "-m", dense, "--method", "flap", "--keep-ratio", 0.6, *data, "--num-samples", 4, pruned)
    assert outcome.code == 0, outcome.error_lines
    assert json.loads((pruned / "config.json").read_text())["output_bias"] is True

    outcome = cli("inspect", "-m", pruned, "--gpu-memory", "1GiB", "--overhead", "1MiB", "--json", result)
    assert outcome.code == 0, outcome.error_lines
    found: dict[str, Any] = json.loads(result.read_text())
    assert found["family"] == name and found["windows"] == WINDOWS.get(name, [None] * 3)
    assert found["deployment"]["dense"]["sequences"] <= found["deployment"]["model"]["sequences"]
    assert ("2 of 3 layers see 8 tokens at once" in outcome.out) == (name in WINDOWS)

    outcome = cli("evaluate", "-m", pruned, "--dense", dense, *data, "--num-samples", 2)
    assert outcome.code == 0, outcome.error_lines


@pytest.mark.parametrize(
    ("model_type", "architecture", "kind"),
    [
        ("qwen2_moe", "Qwen2MoeForCausalLM", "a mixture of experts"),
        ("gemma3", "Gemma3ForConditionalGeneration", "a model of more than text (vision_config)"),
        ("qwen2_vl", "Qwen2VLForConditionalGeneration", "a model of more than text (vision_config)"),
        ("mamba2", "Mamba2ForCausalLM", "a model with recurrent layers"),
    ],
)
def test_what_no_family_takes(model_type: str, architecture: str, kind: str, cli: Cli, tmp_path: Path) -> None:
    CONFIG_MAPPING[model_type](architectures=[architecture]).save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    outcome = cli("export", "-m", tmp_path / "model", "--keep-ratio", 0.5, tmp_path / "out")
    assert outcome.code == 2 and not (tmp_path / "out").exists()
    supported = ", ".join(f"{family.name} ({', '.join(family.model_types)})" for family in FAMILIES.values())
    (line,) = outcome.error_lines
    assert line.endswith(f"model type '{model_type}', {kind}, is not supported; supported are: {supported}")
