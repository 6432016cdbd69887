"""The main job on the trained model that comes with the project, and the ways its result loads."""

from __future__ import annotations

import json
import os
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from optimum_grasprune import GRASPConfig, GRASPPruner, load_pruned_model
from optimum_grasprune.corpora import load_corpus, tokenize
from optimum_grasprune.evaluation import perplexity
from optimum_grasprune.export.checkpoint import save_checkpoint
from optimum_grasprune.families import family_of
from optimum_grasprune.loading import load_model, load_tokenizer
from optimum_grasprune.surgery import build_pruned_model
from tests.conftest import TINY_LLAMA

PROMPT = "The river"


@pytest.fixture(scope="module")
def pruner() -> GRASPPruner:
    config = GRASPConfig(
        keep_ratio=0.8,
        dataset="sampled",
        dataset_split="[:90%]",
        num_samples=96,
        seq_len=128,
        epochs=1,
        learning_rate=0.03,
        dtype="float32",
    )
    pruner = GRASPPruner(config)
    pruner.prune_model(load_model(str(TINY_LLAMA), dtype="float32"), load_tokenizer(str(TINY_LLAMA)))
    return pruner


@pytest.fixture(scope="module")
def windows() -> torch.Tensor:
    """Held-out text of the built-in corpus."""
    return tokenize(load_corpus("sampled", "[90%:]"), load_tokenizer(str(TINY_LLAMA))).windows(128, 60)


def test_trained_gates_beat_random_units_and_scales_improve_them(pruner: GRASPPruner, windows: torch.Tensor) -> None:
    dense = load_model(str(TINY_LLAMA), dtype="float32")
    assert pruner.model is not None and pruner.plan is not None
    random = GRASPPruner(pruner.config.model_copy(update={"method": "random", "compensation": "none"}))
    unscaled = build_pruned_model(dense, pruner.plan.without_scales(), family_of(dense.config))
    scores = {
        name: perplexity(model, windows).perplexity
        for name, model in (
            ("dense", dense),
            ("scaled", pruner.model),
            ("unscaled", unscaled),
            ("random", random.prune_model(dense, load_tokenizer(str(TINY_LLAMA)))),
        )
    }
    assert scores["dense"] < scores["scaled"] < scores["unscaled"] < scores["random"], scores


def greedy(model: torch.nn.Module, tokenizer: object) -> str:
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids  # type: ignore[operator]
    with torch.no_grad():
        output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False)  # type: ignore[operator]
    return tokenizer.decode(output[0])  # type: ignore[attr-defined]


LOAD_WITHOUT_OUR_PACKAGE = """
import importlib.util, json, sys
import torch
assert importlib.util.find_spec("optimum_grasprune") is None
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
texts = []
for folder in sys.argv[1:]:
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)
    ids = tokenizer("The river", return_tensors="pt").input_ids
    output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False)
    assert AutoModel.from_pretrained(folder, trust_remote_code=True).config.model_type == "grasp_llama"
    texts.append(tokenizer.decode(output[0]))
print(json.dumps(texts))
"""


def save_with_output_biases(pruner: GRASPPruner, folder: Path) -> None:
    dense = load_model(str(TINY_LLAMA), dtype="float32")
    assert pruner.plan is not None
    biased = build_pruned_model(dense, pruner.plan, family_of(dense.config), output_bias=True)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in biased.named_parameters():
            if name.endswith(".bias"):
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    save_checkpoint(biased, load_tokenizer(str(TINY_LLAMA)), pruner.record, folder)


def test_same_text_with_our_package_and_without(pruner: GRASPPruner, tmp_path: Path) -> None:
    folders = [tmp_path / "pruned-llama", tmp_path / "biased-llama"]
    pruner.save(folders[0])
    save_with_output_biases(pruner, folders[1])
    tokenizer = AutoTokenizer.from_pretrained(folders[0])
    with_package = [greedy(load_pruned_model(folder), tokenizer) for folder in folders]
    assert with_package[0] != with_package[1], "the biases made no difference"
    assert with_package == [greedy(AutoModelForCausalLM.from_pretrained(folder), tokenizer) for folder in folders]

    environment = tmp_path / "venv"
    venv.create(environment, with_pip=False)
    # The packages of this environment, but not what its own .pth files add, and an editable install of ours is one of
    # those: path files are read in site folders only.
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    script = tmp_path / "load.py"
    script.write_text(LOAD_WITHOUT_OUR_PACKAGE)
    done = subprocess.run(
        [environment / "bin" / "python", script, *folders],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HOME": str(tmp_path / "cache"), "PYTHONPATH": ""},
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == with_package


def test_lm_eval_runs_on_a_pruned_checkpoint(pruner: GRASPPruner, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    pruner.save(tmp_path / "pruned")
    harness = HFLM(pretrained=str(tmp_path / "pruned"), dtype="float32", device="cpu", batch_size=1)
    request = Instance("loglikelihood", {}, ("The river", " is"), 0)
    ((score, _),) = harness.loglikelihood([request], disable_tqdm=True)
    assert score < 0
