"""A pruned checkpoint that is loaded and saved again still loads where this package is not installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from optimum_grasprune import GRASPConfig, GRASPPruner, load_pruned_model
from optimum_grasprune.export.checkpoint import save_checkpoint
from optimum_grasprune.families import FAMILIES
from optimum_grasprune.families.llama.modeling_grasp import GRASPLlamaForCausalLM
from optimum_grasprune.surgery import build_pruned_model
from tests.conftest import logits_of, make_model, make_record, make_tokenizer
from tests.tiny_models import some_plan, tiny_model

CODE = {"configuration_grasp.py", "modeling_grasp.py"}
AUTO_MAP = {
    "AutoConfig": "configuration_grasp.GRASPLlamaConfig",
    "AutoModel": "modeling_grasp.GRASPLlamaModel",
    "AutoModelForCausalLM": "modeling_grasp.GRASPLlamaForCausalLM",
}
TOKENS_BS = torch.arange(12).view(1, 12)
OTHERS = [name for name in FAMILIES if name != "LLaMA"]

# Saves the configuration of the first folder alone, before a model was loaded. Then it loads every folder that it is
# given, saves it again, loads that too, and leaves the logits of both.
ELSEWHERE = """
import sys
from pathlib import Path

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "optimum_grasprune":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, NotInstalled())
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

outcome = Path(sys.argv[1])
AutoConfig.from_pretrained(sys.argv[2], trust_remote_code=True).save_pretrained(outcome / "config")
for folder in map(Path, sys.argv[2:]):
    again = outcome / folder.name
    for source, name in ((folder, "loaded"), (again, "reloaded")):
        model = AutoModelForCausalLM.from_pretrained(source, trust_remote_code=True)
        assert type(model).__module__.startswith("transformers_modules."), type(model)
        with torch.no_grad():
            logits = model(torch.arange(12).view(1, 12)).logits
        save_file({"logits": logits.contiguous()}, outcome / f"{folder.name}.{name}")
        if source == folder:
            model.save_pretrained(again)
"""


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory, corpus_file: Path) -> Path:
    folder = tmp_path_factory.mktemp("pruned") / "plain"
    pruner = GRASPPruner(
        GRASPConfig(method="fasp", compensation="bias", dataset=str(corpus_file), num_samples=2, seq_len=16)
    )
    pruner.prune_model(make_model(), make_tokenizer())
    pruner.save(folder)
    return folder


def resaved(pruned: Path, folder: Path) -> dict[str, torch.Tensor]:
    """Saves the checkpoint in the ways that people do; the logits of each by the folder's name."""
    model = load_pruned_model(pruned)
    logits = {"plain": logits_of(model, TOKENS_BS)}

    def save(name: str, changed: torch.nn.Module, **options: object) -> None:
        changed.save_pretrained(folder / name, **options)  # type: ignore[operator]
        logits[name] = logits_of(changed, TOKENS_BS).float()  # type: ignore[arg-type]

    save("again", model)
    save("twice", AutoModelForCausalLM.from_pretrained(folder / "again"))
    save("trainer", model, state_dict=model.state_dict(), is_main_process=True)
    save("halved", AutoModelForCausalLM.from_pretrained(pruned, dtype=torch.bfloat16))
    model.resize_token_embeddings(300)
    save("resized", model)
    return logits


def of_other_families(folder: Path) -> dict[str, torch.Tensor]:
    """Saves a pruned model of every other family; the logits of each by the folder's name."""
    logits = {}
    for name in OTHERS:
        dense = tiny_model(name)
        model = build_pruned_model(dense, some_plan(dense), FAMILIES[name], output_bias=True)
        save_checkpoint(model, None, make_record(), folder / name)
        logits[name] = logits_of(model, TOKENS_BS)
    return logits


def test_resaved_checkpoints_load_without_this_package(pruned: Path, tmp_path: Path) -> None:
    logits = {**resaved(pruned, tmp_path), **of_other_families(tmp_path)}
    folders = [pruned, *(tmp_path / name for name in logits if name != "plain")]
    outcome = tmp_path / "outcome"
    outcome.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, outcome, *folders],
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    complete(outcome / "config")
    for name, expected in logits.items():
        for step in ("loaded", "reloaded"):
            found = load_file(outcome / f"{name}.{step}")["logits"].float()
            assert torch.equal(found, expected), (name, step)
        complete(outcome / name, name if name in OTHERS else "LLaMA")
        assert torch.equal(logits_of(load_pruned_model(outcome / name), TOKENS_BS).float(), expected), name


def complete(folder: Path, family: str = "LLaMA") -> None:
    """Both code files are there, no other, and all of their classes are named."""
    assert {file.name for file in folder.glob("*.py")} == CODE
    named = json.loads((folder / "config.json").read_text())["auto_map"]
    assert named == AUTO_MAP or family != "LLaMA"
    assert [name.rpartition(".")[2] for name in named.values()] == list(FAMILIES[family].classes)


def test_a_configuration_alone_takes_the_code_along(pruned: Path, tmp_path: Path) -> None:
    AutoConfig.from_pretrained(pruned).save_pretrained(tmp_path / "config")
    complete(tmp_path / "config")


def test_a_base_model_alone_takes_the_code_along(pruned: Path, tmp_path: Path) -> None:
    load_pruned_model(pruned).model.save_pretrained(tmp_path / "base")
    complete(tmp_path / "base")


def test_an_auto_map_that_names_a_hub_repository_becomes_a_local_one(pruned: Path, tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(pruned)
    config.auto_map = {auto: f"someone/model--{name}" for auto, name in AUTO_MAP.items()}
    GRASPLlamaForCausalLM(config).save_pretrained(tmp_path / "out")
    complete(tmp_path / "out")


def test_a_pruned_model_pruned_again_takes_the_code_along(pruned: Path, corpus_file: Path, tmp_path: Path) -> None:
    pruner = GRASPPruner(GRASPConfig(method="magnitude", dataset=str(corpus_file)))
    twice = pruner.prune_model(load_pruned_model(pruned), make_tokenizer())
    pruner.save(tmp_path / "twice")
    complete(tmp_path / "twice")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "twice")
    again.save_pretrained(tmp_path / "again")
    complete(tmp_path / "again")
    assert torch.equal(logits_of(load_pruned_model(tmp_path / "again"), TOKENS_BS), logits_of(twice, TOKENS_BS))
