"""Every family on the real engine, all layers different: one process, one engine after another, in fp32.

Then again with layers that have no attention, no FFN, or neither.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from optimum_grasprune import PruningPlan, UnitMask
from optimum_grasprune.export.checkpoint import save_checkpoint
from optimum_grasprune.families import FAMILIES, family_of
from optimum_grasprune.families.shape import model_shape
from optimum_grasprune.loading import empty_model
from optimum_grasprune.serving.engines.vllm.server import served as vllm_serve
from optimum_grasprune.serving.fit import GIB, fit
from optimum_grasprune.surgery import build_pruned_model
from optimum_grasprune.units import FFN, KV, Address
from tests.conftest import make_record, make_tokenizer
from tests.tiny_models import tiny_model
from vllm_integration import MODELS

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]
pytest.importorskip("vllm")

CONTEXT, NEW_TOKENS, WINDOW, BLOCK = 128, 20, 16, 128
WIDTHS = {
    "all-different": ((4, 1, 3, 2), (92, 85, 78, 71)),
    "without-blocks": ((0, 3, 0, 4), (92, 0, 0, 71)),
}
"""KV heads and FFN channels that stay in each layer."""
_MIXED = ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention"]
_SIZES: dict[str, Any] = {
    "num_hidden_layers": 4,
    "hidden_size": 128,
    "intermediate_size": 96,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,  # twice what hidden ÷ heads would be
    "max_position_embeddings": CONTEXT,
}
_WINDOWS = {"sliding_window": WINDOW, "layer_types": _MIXED}
SERVED: dict[str, dict[str, Any]] = {
    "LLaMA": {"attention_bias": True, "mlp_bias": True},
    "Mistral": {"sliding_window": WINDOW},
    "Ministral": _WINDOWS,
    "Qwen2": {"use_sliding_window": True, **_WINDOWS},
    "Qwen3": {"use_sliding_window": True, "attention_bias": True, **_WINDOWS},
    "Phi-3": {},
    "OPT": {"num_attention_heads": 4, "ffn_dim": 96, "do_layer_norm_before": False, "word_embed_proj_dim": 64},
    "Gemma 3": {
        "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}},
        **_WINDOWS,
    },
}
"""The variant of each family that is hardest to serve."""
ENGINE = """
import json, sys
from vllm import LLM, SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory

prompts, context, folders = json.loads(sys.argv[1]), int(sys.argv[3]), sys.argv[4:]
sampling = SamplingParams(temperature=0, max_tokens=int(sys.argv[2]), ignore_eos=True)
served = {}
for folder in folders:
    engine = LLM(folder, dtype="float32", enforce_eager=True, max_model_len=context, max_num_seqs=4)
    outputs = engine.generate([{"prompt_token_ids": ids} for ids in prompts], sampling, use_tqdm=False)
    tokens = [list(output.outputs[0].token_ids) for output in outputs]
    cache = engine.llm_engine.vllm_config.cache_config
    served[folder] = {"tokens": tokens, "kv_tokens": cache.kv_cache_size_tokens}
    del engine
    cleanup_dist_env_and_memory()
print("SERVED " + json.dumps(served))
"""


def prompts() -> list[list[int]]:
    """Shorter than the window, and longer."""
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(2, 258, (length,), generator=generator).tolist() for length in (5, 24, 40)]


def pruned_checkpoint(family: str, widths: str, folder: Path) -> Path:
    """No two layers alike, and biases on the output projections, also where there is no block."""
    dense = tiny_model(family, **{**_SIZES, **SERVED[family]})
    inventory = family_of(dense.config).inventory(dense)
    kept_U = torch.zeros(inventory.num_units, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    for layer, (heads, channels) in enumerate(zip(*WIDTHS[widths], strict=True)):
        for kind, total, kept in ((KV, 4, heads), (FFN, 96, channels)):
            kept_U[inventory.slice_of(Address(layer, kind))] = torch.randperm(total, generator=generator) < kept
    plan = PruningPlan.from_mask(UnitMask(inventory, kept_U))
    model = build_pruned_model(dense, plan, family_of(dense.config), output_bias=True)
    with torch.no_grad():
        for bias in family_of(model.config).output_biases(model).values():
            assert bias is not None
            bias.add_(torch.randn(bias.shape, generator=generator), alpha=0.2)
    save_checkpoint(model, make_tokenizer(), make_record(), folder)
    return folder


@pytest.fixture(scope="module", params=WIDTHS)
def checkpoints(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {name: pruned_checkpoint(name, request.param, root / name.replace(" ", "-")) for name in FAMILIES}


@pytest.fixture(scope="module")
def served(checkpoints: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """What the engine said of every checkpoint."""
    numbers = [json.dumps(prompts()), str(NEW_TOKENS), str(CONTEXT)]
    command = [sys.executable, "-c", ENGINE, *numbers, *map(str, checkpoints.values())]
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("SERVED ")]
    said = json.loads(line.removeprefix("SERVED "))
    return {name: said[str(folder)] for name, folder in checkpoints.items()}


@pytest.mark.parametrize("name", SERVED)
def test_every_layer_differs(checkpoints: dict[str, Path], name: str) -> None:
    layers = json.loads((checkpoints[name] / "config.json").read_text())["per_layer_config"]
    assert len(layers) == 4
    assert not any(one == other for one, other in itertools.combinations(layers.values(), 2))


@pytest.mark.parametrize("name", SERVED)
def test_greedy_tokens_equal_those_of_transformers(
    checkpoints: dict[str, Path], served: dict[str, dict[str, Any]], name: str
) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoints[name], dtype=torch.float32)
    for ids, tokens in zip(prompts(), served[name]["tokens"], strict=True):
        prompt = torch.tensor([ids])
        options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": None, "pad_token_id": 1}
        expected = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
        assert tokens == expected[0, len(ids) :].tolist()


@pytest.mark.parametrize("name", SERVED)
def test_the_kv_cache_holds_as_many_tokens_as_computed(
    checkpoints: dict[str, Path], served: dict[str, dict[str, Any]], name: str
) -> None:
    config = AutoConfig.from_pretrained(checkpoints[name])
    shape = model_shape(empty_model(config), family_of(config))
    held = fit(
        shape,
        gpu_memory=GIB,
        utilization=1,
        context=CONTEXT,
        weight_bytes=0,
        kv_element_bytes=4,
        overhead=0,
        block_tokens=BLOCK,
    )
    assert served[name]["kv_tokens"] == held.kv_tokens


@pytest.mark.slow
@pytest.mark.parametrize("name", SERVED)
def test_the_server_needs_no_flags(name: str, tmp_path: Path) -> None:
    """Compiled, and in the precision that vLLM takes by itself."""
    folder = pruned_checkpoint(name, "all-different", tmp_path / "pruned")
    with vllm_serve(folder, tmp_path / "server.log", environment={"VLLM_CPU_KVCACHE_SPACE": "1"}) as server:
        assert server.command[:3] == ("vllm", "serve", str(folder)) and server.command[3] == "--host"
        assert len(server.command) == 7  # no flags but the address
        assert len(server.complete(prompts()[1], max_tokens=8).tokens) == 8


def test_every_family_is_served() -> None:
    assert set(SERVED) == set(FAMILIES)
    assert {family.classes[2] for family in FAMILIES.values()} == set(MODELS)
