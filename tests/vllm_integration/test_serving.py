"""The real engine, on whatever device vLLM is installed for."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from optimum_grasprune import GRASPConfig, GRASPPruner, PruningPlan, UnitMask
from optimum_grasprune.export.checkpoint import save_checkpoint
from optimum_grasprune.families import family_of
from optimum_grasprune.loading import load_model, load_tokenizer
from optimum_grasprune.serving.engines.vllm.server import Server, ServerError, served
from optimum_grasprune.surgery import build_pruned_model
from optimum_grasprune.units import FFN, KV, Address
from tests.conftest import TINY_LLAMA, make_record

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]
vllm = pytest.importorskip("vllm")

PROMPTS = [
    "Once upon a time",
    "The river",
    "A cat and a dog",
    "Dear friend,",
    "Water boils when",
    "The history of music",
    "In the morning she",
    "Question: What is a star?",
]
KV_HEADS = [4, 1, 3, 2, 4, 2]
MEMORY = {"VLLM_CPU_KVCACHE_SPACE": "1"}  # GiB; the same for every server, so that token counts compare
BLOCK = 128


def make_plan(model: PreTrainedModel) -> PruningPlan:
    """No two layers alike: every layer its own number of channels, one to four KV heads, scales that are not one."""
    inventory = family_of(model.config).inventory(model)
    kept = torch.zeros(inventory.num_units, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    for layer, heads in enumerate(KV_HEADS):
        kept[inventory.slice_of(Address(layer, KV))] = torch.randperm(4, generator=generator) < heads
        kept[inventory.slice_of(Address(layer, FFN))] = torch.randperm(344, generator=generator) < 340 - 7 * layer
    scales = 0.9 + 0.2 * torch.rand(int(kept.sum()), generator=generator)
    return PruningPlan.from_mask(UnitMask(inventory, kept)).with_scales(scales)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = load_model(str(TINY_LLAMA), dtype="float32")
    pruner = GRASPPruner(GRASPConfig(dtype="float32"))
    pruner.replay(model, load_tokenizer(str(TINY_LLAMA)), make_plan(model))
    folder = tmp_path_factory.mktemp("served") / "pruned-llama"
    pruner.save(folder)
    return folder


@pytest.fixture(scope="module")
def biased_checkpoint(checkpoint: Path) -> Path:
    """The same cuts, with biases on the output projections that are large enough to change what is said."""
    model = load_model(str(TINY_LLAMA), dtype="float32")
    family = family_of(model.config)
    pruned = build_pruned_model(model, make_plan(model), family, output_bias=True)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for linear in family.output_projections(pruned).values():
            linear.bias.copy_(0.1 * torch.randn(linear.bias.shape, generator=generator))
    folder = checkpoint.with_name("biased-llama")
    save_checkpoint(pruned, load_tokenizer(str(TINY_LLAMA)), make_record(), folder)
    return folder


@pytest.fixture(scope="module")
def plain_server(checkpoint: Path) -> Iterator[Server]:
    """`vllm serve CHECKPOINT`, no flags but the address. vLLM then compiles, and computes fp32 models in bf16."""
    with served(checkpoint, checkpoint.with_name("plain.log"), environment=MEMORY) as server:
        yield server


@pytest.fixture(scope="module")
def exact_server(biased_checkpoint: Path) -> Iterator[Server]:
    """In fp32, so that tokens compare; with output biases, so that these are compared too."""
    flags = ["--dtype", "float32", "--enforce-eager"]
    log = biased_checkpoint.with_name("exact.log")
    with served(biased_checkpoint, log, flags=flags, environment=MEMORY) as server:
        yield server


def test_every_layer_differs(checkpoint: Path) -> None:
    layers = json.loads((checkpoint / "config.json").read_text())["per_layer_config"]
    assert not any(one == other for one, other in itertools.combinations(layers.values(), 2))


def greedy(model: PreTrainedModel, ids: torch.Tensor) -> list[int]:
    output = model.generate(ids, max_new_tokens=32, do_sample=False, attention_mask=torch.ones_like(ids))  # type: ignore[operator]
    return output[0, ids.shape[1] :].tolist()


def test_greedy_tokens_equal_those_of_transformers(
    checkpoint: Path, biased_checkpoint: Path, exact_server: Server
) -> None:
    unbiased, model = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in (checkpoint, biased_checkpoint)
    )
    tokenizer = AutoTokenizer.from_pretrained(biased_checkpoint)
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        completion = exact_server.complete(ids[0].tolist(), max_tokens=32)
        assert completion.tokens == greedy(model, ids), prompt
        assert completion.tokens != greedy(unbiased, ids), f"the biases made no difference to {prompt!r}"


def test_kv_cache_grows_by_exactly_the_heads_removed(plain_server: Server, tmp_path: Path) -> None:
    flags = ["--enforce-eager"]  # compiling would take its time and change no memory
    with served(TINY_LLAMA, tmp_path / "dense.log", flags=flags, environment=MEMORY) as dense_server:
        dense = dense_server.kv_cache_tokens()
    ratio = 4 * len(KV_HEADS) / sum(KV_HEADS)
    # Both counts are whole blocks: the dense one may be short of its memory by less than a block, which grows alike.
    assert abs(plain_server.kv_cache_tokens() - dense * ratio) <= BLOCK * ratio


def test_served_without_flags_answers(plain_server: Server) -> None:
    completion = plain_server.complete("Once upon a time", max_tokens=16)
    assert len(completion.tokens) == 16 and completion.text.strip()


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    message = r"ended with code \d+ before it was ready; the end of its log:\n"
    with pytest.raises(ServerError, match=message), served(tmp_path, tmp_path / "server.log"):
        pass


def test_plugin_is_an_entry_point_and_may_be_registered_twice() -> None:
    (entry,) = [entry for entry in entry_points(group="vllm.general_plugins") if entry.name == "grasprune"]
    register = entry.load()
    register()
    register()
    assert "GRASPLlamaForCausalLM" in vllm.ModelRegistry.get_supported_archs()
