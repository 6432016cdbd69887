"""Every family with whole blocks gone is served as it computes: one process, one engine after another, in fp32."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from optimum_grasprune.export.checkpoint import save_checkpoint
from optimum_grasprune.families import family_of
from optimum_grasprune.surgery import build_pruned_model
from optimum_grasprune.units import FFN, KV, Address, PruningPlan
from tests.conftest import make_record, make_tokenizer
from tests.tiny_models import VARIANTS, some_mask, tiny_model

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]
pytest.importorskip("vllm")

PROMPTS = [[5, 9, 40, 41, 7], [100, 3, 77, 12, 8, 8, 90, 14, 200, 33, 61, 5]]
NEW_TOKENS = 16
SIZES = {"hidden_size": 128, "num_hidden_layers": 4, "intermediate_size": 96, "head_dim": 32}
ENGINE = """
import json, sys
from vllm import LLM, SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory

prompts, tokens, folders = json.loads(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
served = {}
for folder in folders:
    engine = LLM(folder, dtype="float32", enforce_eager=True, max_model_len=64, max_num_seqs=4)
    outputs = engine.generate([{"prompt_token_ids": ids} for ids in prompts], sampling, use_tqdm=False)
    layers = engine.llm_engine.vllm_config.compilation_config.static_forward_context
    served[folder] = {
        "tokens": [list(output.outputs[0].token_ids) for output in outputs],
        "cached": sorted(layers),
    }
    del engine
    cleanup_dist_env_and_memory()
print("SERVED " + json.dumps(served))
"""


def holed_checkpoint(family: str, folder: Path) -> Path:
    """The first layer without attention, the second without an FFN, the third without either, biases besides."""
    windows = {"layer_types": None} if family in ("Ministral", "Gemma 3") else {}
    model = tiny_model(family, **SIZES, **windows)
    mask = some_mask(model)
    for layer, kind in ((0, KV), (1, FFN), (2, KV), (2, FFN)):
        mask.kept_U[mask.inventory.slice_of(Address(layer, kind))] = False
    pruned = build_pruned_model(model, PruningPlan.from_mask(mask), family_of(model.config), output_bias=True)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for bias in family_of(pruned.config).output_biases(pruned).values():
            bias.copy_(0.2 * torch.randn(bias.shape, generator=generator))  # type: ignore[union-attr]
    save_checkpoint(pruned, make_tokenizer(), make_record(), folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("served")
    return {name: holed_checkpoint(name, root / name.replace(" ", "-")) for name in VARIANTS}


def test_they_are_served_as_they_compute(folders: dict[str, Path]) -> None:
    command = [sys.executable, "-c", ENGINE, json.dumps(PROMPTS), str(NEW_TOKENS), *map(str, folders.values())]
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("SERVED ")]
    served = json.loads(line.removeprefix("SERVED "))
    for name, folder in folders.items():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        found = served[str(folder)]
        attending = [layer for layer in (1, 3) if any(f".layers.{layer}." in cached for cached in found["cached"])]
        assert len(found["cached"]) == len(attending) == 2, f"{name} caches {found['cached']}"
        for ids, tokens in zip(PROMPTS, found["tokens"], strict=True):
            prompt = torch.tensor([ids])
            expected = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
                eos_token_id=None,
            )
            assert tokens == expected[0, len(ids) :].tolist(), name
