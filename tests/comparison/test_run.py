from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from optimum_grasprune import GRASPPruner
from optimum_grasprune.comparison import Comparison, cells_of, read_corpora
from optimum_grasprune.comparison.models import identity
from optimum_grasprune.comparison.results import BaseModel
from optimum_grasprune.comparison.run import check_folder
from optimum_grasprune.errors import CheckpointError, DataError, OptionError
from optimum_grasprune.execution import WholeModel
from optimum_grasprune.statistics import MOMENTS, PER_SEQUENCE, PER_TOKEN, TOKEN_WEIGHTS
from tests.conftest import make_model, make_tokenizer

QUICK = {"num_samples": 4, "seq_len": 24, "epochs": 1}


def test_output_folder(tmp_path: Path) -> None:
    check_folder(tmp_path / "a" / "b")
    check_folder(tmp_path / "a" / "b")
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    for output, message in (
        (tmp_path / "file", "is a file, not a folder"),
        (tmp_path / "full", "holds something other than a comparison"),
        (Path("/proc/nowhere"), "cannot be written"),
    ):
        with pytest.raises(CheckpointError, match=message):
            check_folder(output)


def test_identity_is_shapes_and_weights(
    build_model: Callable[..., LlamaForCausalLM], model_folder: Path, tmp_path: Path
) -> None:
    def saved(seed: int) -> BaseModel:
        model = build_model(seed=seed)
        model.save_pretrained(tmp_path / str(seed))
        return identity(str(tmp_path / str(seed)), model.config)

    assert saved(0) == identity(str(model_folder), build_model().config)
    assert saved(1) != saved(0)


def comparison(model_folder: Path, corpus_file: Path, output: Path, **options: Any) -> Comparison:
    cells = cells_of(["random"], [0.5], {**QUICK, "dataset": str(corpus_file), **options})
    corpora = read_corpora([f"end={corpus_file}[90%:]"], "text")
    dtype = cells[0].config.dtype
    return Comparison(str(model_folder), cells, corpora, output, window=32, limits=[3], dtype=dtype)


@pytest.mark.parametrize(("dtype", "precision"), [("auto", "fp32"), ("bfloat16", "bf16")])
def test_models_are_measured_in_what_they_are_pruned_in(
    dtype: str, precision: str, model_folder: Path, corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[torch.dtype] = []
    losses = WholeModel.losses

    def watched(self: WholeModel, *given: Any) -> Any:
        measured.append(self.model.dtype)
        return losses(self, *given)

    monkeypatch.setattr(WholeModel, "losses", watched)
    own = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    result = comparison(model_folder, corpus_file, tmp_path, dtype=dtype).run()
    assert set(measured) == {own} and result.precision == precision
    assert result.dense.dtype == result.cells[0].pruned.dtype == str(own).removeprefix("torch.")
    asked = [json.loads(file.read_text())["inputs"]["dtype"] for file in tmp_path.rglob("*.json")]
    assert asked == [dtype] * 2
    measured.clear()
    comparison(model_folder, corpus_file, tmp_path, dtype=dtype).run()
    assert not measured
    comparison(model_folder, corpus_file, tmp_path, dtype="float16").run()
    assert set(measured) == {torch.float16}


def test_damaged_or_foreign_cells_are_run_again(model_folder: Path, corpus_file: Path, tmp_path: Path) -> None:
    first = comparison(model_folder, corpus_file, tmp_path).run()
    file = tmp_path / "cells" / "random-0.5.json"
    good = json.loads(file.read_text())
    for content in ("{", "[]", "{}", json.dumps({**good, "inputs": {}})):
        file.write_text(content)
        again = comparison(model_folder, corpus_file, tmp_path).run()
        assert again.cells[0].pruned.perplexity == first.cells[0].pruned.perplexity
        assert json.loads(file.read_text())["inputs"] == good["inputs"]


def test_checks_before_any_work(model_folder: Path, corpus_file: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    corpora = read_corpora([f"end={corpus_file}[90%:]"], "text")
    for entries, ratios, options, window, error, message in (
        (["flap"], [0.5], {"dataset": "/nowhere.txt"}, 32, OptionError, "no such file"),
        (["flap"], [0.5], {"seq_len": 200}, 32, OptionError, "the model reads at most 128 tokens"),
        (["flap"], [0.8, 0.01], {}, 32, OptionError, "keep_ratios=0.01: too small for"),
        (["flap"], [0.5], {"recover": "distill", "recover_watch": "/nowhere.txt"}, 32, OptionError, "recover_watch="),
        (["flap"], [0.5], {"recover": "distill", "recover_tokens": 10**7}, 32, OptionError, "recover_tokens="),
        (["flap"], [0.5], {}, 129, OptionError, "eval_seq_len=129: the model reads at most 128 tokens"),
    ):
        cells = cells_of(entries, ratios, {**QUICK, "dataset": str(corpus_file), **options})
        with pytest.raises(error, match=message):
            Comparison(str(model_folder), cells, corpora, output, window=window)
    short = tmp_path / "short.txt"
    short.write_text("too short")
    cells = cells_of(["random"], [0.5], {"dataset": "/nowhere.txt", "seq_len": 200})  # random looks at no data
    with pytest.raises(DataError, match="less than one window of 32"):
        Comparison(str(model_folder), cells, read_corpora([f"s={short}"], "text"), output, window=32)
    assert not output.exists()
    Comparison(str(model_folder), cells, corpora, output, window=32)


def test_no_statistic_of_a_text_is_gathered_twice(
    model_folder: Path, corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gathered: list[object] = []
    gather = WholeModel.gather

    def watched(self: WholeModel, statistics: Any, *given: Any, **options: Any) -> Any:
        gathered.extend(statistics := list(statistics))
        return gather(self, statistics, *given, **options)

    monkeypatch.setattr(WholeModel, "gather", watched)
    options = {**QUICK, "dataset": str(corpus_file), "held_out": 2}
    entries = [
        "quick+least_squares",
        "taylor+least_squares@least_squares=weighted",
        "flap",
        "taylor+least_squares@num_samples=3",
    ]
    cells = cells_of(entries, [0.8, 0.5], options)
    corpora = read_corpora([f"end={corpus_file}[90%:]"], "text")
    result = Comparison(str(model_folder), cells, corpora, tmp_path / "out", window=32, limits=[3]).run()
    assert not result.failed()
    # Fisher information and what tokens count for; Taylor's; moments; and Taylor's of another text.
    assert gathered == [PER_TOKEN, TOKEN_WEIGHTS, PER_SEQUENCE, MOMENTS, PER_SEQUENCE]
    alone = GRASPPruner(cells[1].config).prune(make_model(), make_tokenizer())
    assert [choice.loss for choice in result.cells[1].pruned.choice] == [each.loss for each in alone.record.choice]


def test_a_cell_is_run_again_when_the_watched_text_has_changed(
    model_folder: Path, corpus_file: Path, tmp_path: Path
) -> None:
    watched = tmp_path / "watched.txt"
    watched.write_text("All that glitters is not gold. " * 20)
    options = {"recover": "distill", "recover_tokens": 48, "recover_watch": str(watched)}
    lines: list[str] = []
    for _ in range(2):
        comparison(model_folder, corpus_file, tmp_path / "out", **options).run(lines.append)
    watched.write_text("Nor is all that is lost gone for good. " * 20)
    result = comparison(model_folder, corpus_file, tmp_path / "out", **options).run(lines.append)
    assert [line for line in lines if "finished before" in line and "cell" in line] == [
        "cell 1 of 1, random at 0.5: finished before"
    ]
    assert len([line for line in lines if line.endswith(": running")]) == 2
    assert not result.failed()
