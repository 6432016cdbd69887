"""What every structural method puts out is served as it computes: one process, one engine after another, in fp32."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from optimum_grasprune import GRASPConfig, GRASPPruner
from optimum_grasprune.loading import load_model, load_tokenizer
from optimum_grasprune.methods import get_method, method_names
from tests.conftest import TINY_LLAMA

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]
pytest.importorskip("vllm")

PROMPTS = ["Once upon a time", "The river", "Water boils when"]
NEW_TOKENS = 24
ENGINE = """
import json, sys
from vllm import LLM, SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory

prompts, folders = json.loads(sys.argv[1]), sys.argv[3:]
sampling = SamplingParams(temperature=0, max_tokens=int(sys.argv[2]), ignore_eos=True)
served = {}
for folder in folders:
    engine = LLM(folder, dtype="float32", enforce_eager=True, max_model_len=128, max_num_seqs=4)
    outputs = engine.generate([{"prompt_token_ids": ids} for ids in prompts], sampling, use_tqdm=False)
    served[folder] = [list(output.outputs[0].token_ids) for output in outputs]
    del engine
    cleanup_dist_env_and_memory()
print("SERVED " + json.dumps(served))
"""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny LLaMA pruned by every method that cuts units, with the method's own compensation."""
    model, tokenizer = load_model(str(TINY_LLAMA), dtype="float32"), load_tokenizer(str(TINY_LLAMA))
    folder = tmp_path_factory.mktemp("methods")
    for name in method_names():
        config = GRASPConfig(
            method=name,
            keep_ratio=0.6,
            dataset="sampled",
            num_samples=12,
            seq_len=64,
            scale_samples=8,
            search_trials=2,
            search_samples=2,
            dtype="float32",
        )
        pruner = GRASPPruner(config)
        pruner.prune_model(model, tokenizer)
        pruner.save(folder / name)
    return {name: folder / name for name in method_names() if "units" in get_method(name).patterns}


def test_every_method_is_served_as_it_computes(checkpoints: dict[str, Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(TINY_LLAMA)
    prompts = [tokenizer(prompt).input_ids for prompt in PROMPTS]
    command = [sys.executable, "-c", ENGINE, json.dumps(prompts), str(NEW_TOKENS), *map(str, checkpoints.values())]
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("SERVED ")]
    served = json.loads(line.removeprefix("SERVED "))
    for name, folder in checkpoints.items():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        for ids, tokens in zip(prompts, served[str(folder)], strict=True):
            prompt = torch.tensor([ids])
            expected = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
                eos_token_id=None,
            )
            assert tokens == expected[0, len(ids) :].tolist(), name


def test_flap_really_has_a_bias(checkpoints: dict[str, Path]) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoints["flap"])
    assert all(bool(layer.mlp.down_proj.bias.any()) for layer in model.model.layers)
