"""Models and tokenizers for all tests. They are built in code; nothing is downloaded."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

# What is displayed is tested, whatever the tests are run from: a pipeline switches bars off, a desktop may colour them.
# Before the imports below, since huggingface_hub and tqdm read the switches once.
for _switch in ("HF_HUB_DISABLE_PROGRESS_BARS", "TQDM_DISABLE", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES"):
    os.environ.pop(_switch, None)

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from optimum_grasprune import UnitGroup, UnitInventory
from optimum_grasprune.execution import WholeModel
from optimum_grasprune.record import Record
from optimum_grasprune.statistics import Sensitivity
from optimum_grasprune.statistics.sensitivity import Reduction
from optimum_grasprune.units import FFN, KV


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests that are marked slow too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests with an engine come first: where processes share the suite, these take one of them half of its time.

    They stay in one process, whose engine they share, and so do the tests of a file, which share what it has made.
    """
    items.sort(key=lambda item: item.get_closest_marker("engine") is None)
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            group = "engine" if item.get_closest_marker("engine") else str(item.path)
            item.add_marker(pytest.mark.xdist_group(group))
    if not config.getoption("--slow"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="slow: make test-all"))


TINY_LLAMA = Path(__file__).parent.parent / "examples" / "tiny-llama"
"""The trained model that comes with the project."""


def script(path: str) -> ModuleType:
    """A script of the project as a module. path: from the project's folder, as in benchmarks/ablation.py."""
    file = Path(__file__).parent.parent / path
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module  # where dataclasses look up what their annotations mean
    spec.loader.exec_module(module)
    return module


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, with bos 0 and eos 1."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<s>", "</s>", *alphabet])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", model_max_length=128)


def make_model(seed: int = 0, **overrides: Any) -> LlamaForCausalLM:
    """A random LLaMA with grouped-query attention whose logits depend visibly on every weight, biases included."""
    torch.manual_seed(seed)
    values: dict[str, Any] = {
        "vocab_size": 258,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
        "bos_token_id": 0,
        "eos_token_id": 1,
        **overrides,
    }
    model = LlamaForCausalLM(LlamaConfig(**values)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # zero at initialisation, which would hide mistakes
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def sensitivity(model: PreTrainedModel, tokens_NS: Tensor, reduce: Reduction, **options: Any) -> Tensor:
    """The sensitivity of every unit, shape (units,); options: those of `Runner.gather`."""
    statistic = Sensitivity(reduce)
    return WholeModel(model).gather([statistic], tokens_NS, **options)[statistic]


def make_record(**values: Any) -> Record:
    """A record that was read from a file, with other values in its JSON where any are given."""
    file = Path(__file__).parent / "data" / "version-0.1" / "fasp.json"
    return Record.from_dict({**json.loads(file.read_text(encoding="utf-8")), **values}, file)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture
def model() -> LlamaForCausalLM:
    return make_model()


@pytest.fixture
def build_model() -> Callable[..., LlamaForCausalLM]:
    return make_model


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    sentences = (f"Number {n} is followed by number {n + 1}, as every child knows.\n" for n in range(400))
    file.write_text("".join(sentences))
    return file


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved random model with a tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "dense"
    make_model().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def small_inventory() -> UnitInventory:
    """Two layers: 4 FFN channels of cost 3 and 2 KV groups of cost 10 (4 KV elements) each."""
    groups = []
    for layer in range(2):
        groups += [UnitGroup(layer, KV, 2, 10, 4), UnitGroup(layer, FFN, 4, 3)]
    return UnitInventory(tuple(groups))


def logits_of(model: PreTrainedModel, tokens_BS: torch.Tensor) -> torch.Tensor:
    """Logits without gradients, shape (B, S, V)."""
    with torch.no_grad():
        return model(tokens_BS).logits
