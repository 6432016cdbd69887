"""`benchmarks/recovery.py`, on the random model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from optimum_grasprune import GRASPConfig, GRASPPruner
from tests.conftest import make_model, script


def test_a_share_is_so_far_on_the_way() -> None:
    bench, model = script("benchmarks/recovery.py"), make_model()
    before = {name: torch.zeros_like(weight) for name, weight in model.named_parameters()}
    after = {name: torch.full_like(weight, 2.0) for name, weight in model.named_parameters()}
    bench.mix(model, before, after, 0.75)
    assert all((weight == 1.5).all() for weight in model.parameters())


def test_every_run_starts_from_the_checkpoint_and_is_made_once(
    model_folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    corpus_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pruned, output = tmp_path / "pruned", tmp_path / "recovery"
    GRASPPruner(GRASPConfig(method="random", keep_ratio=0.6)).prune(make_model(), tokenizer).save(pruned)
    watch = f"recover_watch={__file__},num_samples=4,seq_len=24,held_out=2,recover_tokens=96,recover_learning_rate=1e-2"
    runs = [f"distill@{watch}", f"lora@{watch},recover_rank=2"]
    command = ["recovery", str(model_folder), str(pruned), "--output", str(output), "--dataset", str(corpus_file)]
    command += ["--shares", "0.5", "1", "--evaluate", f"end={corpus_file}[90%:]", "--eval-seq-len", "32"]
    bench = script("benchmarks/recovery.py")
    for some in (runs[:1], runs):
        monkeypatch.setattr(sys, "argv", [*command, "--runs", *some])
        bench.main()
    stored = json.loads((output / "recovery.json").read_text())
    assert list(stored["runs"]) == runs
    for run in stored["runs"].values():
        assert list(run["perplexity"]) == ["0.5", "1"] and run["training"]["planned_steps"] == 4
    page = (output / "recovery.md").read_text()
    assert page.count("| before |") == 1 and page.count(f"| `{runs[1]}` |") == 1 and page.count("| 0.5 |") == 2
    again = json.loads((output / "recovery.json").read_text())
    monkeypatch.setattr(sys, "argv", [*command, "--runs", *runs])
    monkeypatch.setattr(bench.Bench, "run", None)
    bench.main()
    assert json.loads((output / "recovery.json").read_text()) == again
    monkeypatch.setattr(sys, "argv", [*command, "--runs", "diagonals"])
    with pytest.raises(SystemExit, match="2"):
        bench.main()
