"""Tasks asked of a real vLLM engine, beside the same tasks asked of transformers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from optimum_grasprune import GRASPConfig, GRASPPruner
from optimum_grasprune.evaluation.report import EvaluationReport
from optimum_grasprune.evaluation.vllm_backend import KV_VARIABLE, kv_cache_on_a_cpu
from optimum_grasprune.loading import load_model, load_tokenizer
from tests.conftest import TINY_LLAMA
from tests.tiny_tasks import TASK_FILES, write_task_data

TASKS = ("local_arc_easy", "local_piqa")


def test_the_kv_cache_of_a_cpu_is_the_users_where_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KV_VARIABLE, raising=False)
    with kv_cache_on_a_cpu():
        assert os.environ[KV_VARIABLE] == "1"
    assert KV_VARIABLE not in os.environ
    monkeypatch.setenv(KV_VARIABLE, "7")
    with kv_cache_on_a_cpu():
        assert os.environ[KV_VARIABLE] == "7"
    assert os.environ[KV_VARIABLE] == "7"


@pytest.mark.engine
@pytest.mark.timeout(900)
def test_vllm_answers_as_transformers_do(tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    pytest.importorskip("lm_eval")
    pruner = GRASPPruner(GRASPConfig(method="magnitude", keep_ratio=0.6, compensation="none", dtype="float32"))
    pruner.prune_model(load_model(str(TINY_LLAMA), dtype="float32"), load_tokenizer(str(TINY_LLAMA)))
    pruner.save(tmp_path / "pruned")
    data = write_task_data(tmp_path / "data")
    command = [sys.executable, "-m", "optimum.commands.optimum_cli", "grasprune", "evaluate", "--dtype", "float32"]
    command += ["-m", str(tmp_path / "pruned"), "--tasks", ",".join(TASKS), "--include-path", str(TASK_FILES)]
    command += ["--task-data", str(data)]
    scores = {}
    for backend in ("hf", "vllm"):
        result = tmp_path / f"{backend}.json"
        environment = {name: value for name, value in os.environ.items() if name != KV_VARIABLE}
        done = subprocess.run(
            [*command, "--backend", backend, "--json", str(result)],
            capture_output=True, text=True, env=environment, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        (model,) = EvaluationReport.read(result).models
        scores[backend] = {name: model.tasks[name].value for name in TASKS}
    assert scores["vllm"] == scores["hf"]
