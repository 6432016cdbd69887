"""The benchmark that runs the published code beside ours, on a stand-in with the published code's functions.

What it gives to that code, and takes from it, is tested; the code itself is not part of the project.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from optimum_grasprune.corpora import load_corpus, tokenize
from optimum_grasprune.evaluation import perplexity
from optimum_grasprune.loading import load_model, load_tokenizer
from tests.conftest import script

published = script("benchmarks/published.py")

STAND_IN = """
import json
import torch
from transformers import AutoModelForCausalLM

def load_text_dataset(name, split):
    raise RuntimeError("the hub is asked")

def load_model_and_tokenizer(config):
    return AutoModelForCausalLM.from_pretrained(config.model_id, dtype=config.dtype), None

def materialize_all_pruning(model):
    raise RuntimeError("it is cut")

def export_pruned_state_dict_safetensors(model, path):
    raise RuntimeError("it is saved")

def run_pruning_pipeline(config):
    model, _ = load_model_and_tokenizer(config)
    (text,) = load_text_dataset("wikitext2", "train")["text"]
    with open(config.output_dir + "-given", "w") as file:
        json.dump([len(text), config.keep_ratio, torch.get_num_threads()], file)
    model.train()
    torch.nn.init.zeros_(model.model.layers[0].mlp.down_proj.weight)
    materialize_all_pruning(model)
    export_pruned_state_dict_safetensors(model, "somewhere")
"""
CONFIG = """
class PruningConfig:
    def __init__(self, **options):
        self.__dict__.update(options)
"""
RUN = published.Run


def test_the_table_by_hand() -> None:
    runs = {
        "published": RUN(200.0, {"a": 2.0, "b": 0.0}),
        "quick": RUN(10.0, {"a": 2.0, "b": 1.0}),
        "slow": RUN(300.0, {"a": 2.5, "b": 0.0}),
    }
    assert published.table(runs).splitlines() == [
        "| | seconds | ÷ theirs | a | b | reached |",
        "|---|---:|---:|---:|---:|---|",
        "| published | 200 |  | 7.389 | 1 |  |",
        "| quick | 10 | 1/20.0 | 7.389 | 2.718 | yes |",
        "| slow | 300 | ≥ 1 | 12.18 | 1 | no |",
    ]


def test_a_folder_without_the_code_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--code", str(tmp_path), "--output", str(tmp_path / "out"), "--dataset", "x", "--evaluate", "a=x"]
    monkeypatch.setattr(sys, "argv", ["published", "model", *options])
    with pytest.raises(SystemExit):
        published.main()
    assert f"--code {tmp_path}: is no clone of the published code" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_both_are_run_on_the_same_text_and_measured_alike(
    model_folder: Path, corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(published.__file__).parent))  # for its child processes
    code, output = tmp_path / "code", tmp_path / "out"
    code.mkdir()
    (code / "pipeline.py").write_text(STAND_IN)
    (code / "config.py").write_text(CONFIG)
    text = ["--dataset", str(corpus_file), "--dataset-split", "[:50%]", "--evaluate", f"rest={corpus_file}[50%:]"]
    window = ["--eval-seq-len", "32", "--eval-samples", "4", "--keep-ratio", "0.5"]
    command = ["published", str(model_folder), "--code", str(code), "--output", str(output), *text, *window]
    monkeypatch.setattr(sys, "argv", [*command, "--ours", "magnitude+none"])
    published.main()
    length, ratio, threads = json.loads((output / "published-given").read_text())
    assert (ratio, threads) == (0.5, 1) and length == pytest.approx(len(corpus_file.read_text()) / 2, abs=1)
    found = json.loads((output / "published.json").read_text())["runs"]
    assert list(found) == ["published", "magnitude+none"] and min(run["seconds"] for run in found.values()) > 0
    model = load_model(str(model_folder), dtype="float32", device="cpu")
    torch.nn.init.zeros_(model.get_submodule("model.layers.0.mlp.down_proj").weight)
    rest = load_corpus(str(corpus_file), "[50%:]")
    windows_WS = tokenize(rest, load_tokenizer(str(model_folder)), model.config.vocab_size).windows(32, 4)
    assert found["published"]["losses"]["rest"] == pytest.approx(perplexity(model, windows_WS).loss)
    page = (output / "published.md").read_text()
    assert "| magnitude+none |" in page and str(tmp_path) not in page

    monkeypatch.setattr(published, "in_own_process", lambda *_: pytest.fail("it is run again"))
    published.main()
    monkeypatch.setattr(sys, "argv", [*command[:-1], "0.8"])
    with pytest.raises(SystemExit):
        published.main()
