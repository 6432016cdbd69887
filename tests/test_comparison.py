from __future__ import annotations

import copy
import csv
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from optimum_grasprune import GRASPConfig, GRASPPruner
from optimum_grasprune.comparison import (
    Cell,
    Comparison,
    cells_of,
    check_folder,
    csv_text,
    excess_loss,
    failed,
    full_table,
    identity,
    markdown,
    points_of,
    read_corpora,
    short_table,
    shown,
    slug,
    widened,
    write_tables,
)
from optimum_grasprune.config import RECIPES
from optimum_grasprune.errors import CheckpointError, DataError, OptionError
from optimum_grasprune.methods import method_names
from tests.conftest import logits_of

QUICK = {"num_samples": 4, "seq_len": 24, "epochs": 1}


def cell(entry: str, ratio: float, perplexities: tuple[float, float], kv: float = 0.5) -> dict[str, Any]:
    return {
        "entry": entry,
        "keep_ratio": ratio,
        "kept": {"prunable": ratio, "parameters": ratio + 0.1, "kv_cache": kv},
        "compensation": ["least_squares", "scales"] if entry == "default" else [],
        "choice": [],
        "seconds": 1234.5,
        "scores_reused": False,
        "perplexity": dict(zip(("held out|text", "wiki"), perplexities, strict=True)),
        "recipe": GRASPConfig(keep_ratio=ratio).to_dict(),
        "calibration": "ab" * 32,
    }


CORPUS = {"source": "corpus.txt", "split": "[90%:]", "sha256": "cd" * 32, "windows": 9, "window": 32}
RESULT: dict[str, Any] = {
    "format": 1,
    "model": {"source": "models/tiny"},
    "options": {"dataset": "corpus.txt", "dataset_split": None, "text_column": "text", "seed": 7},
    "corpora": {"held out|text": CORPUS, "wiki": {**CORPUS, "source": "wikitext2", "split": "test"}},
    "dense": {"parameters": 1000, "perplexity": {"held out|text": 5.0, "wiki": 100.0}},
    "cells": [
        cell("default", 0.5, (20.0, 1500.25)),
        cell("default", 0.8, (6.0, 110.0)),
        cell("random", 0.8, (9.0, 105.0)),
        {"entry": "random", "keep_ratio": 0.5, "error": "the loss is not finite", "recipe": GRASPConfig().to_dict()},
    ],
    "versions": {},
}


def test_cells_are_every_entry_at_every_ratio() -> None:
    cells = cells_of(["default", "flap+none", "default"], ["0.5", 0.8, "0.50"], QUICK)
    assert [(cell.entry, cell.config.keep_ratio) for cell in cells] == [
        ("default", 0.8),
        ("default", 0.5),
        ("flap+none", 0.8),
        ("flap+none", 0.5),
    ]
    assert {cell.config.epochs for cell in cells} == {1}
    assert cells[3].config.method == "flap" and cells[3].config.compensation == "none"
    assert cells[3].name == "flap+none at 0.5" and cells[3].file_name == "flap+none-0.5.json"


def test_an_entry_is_a_recipe_or_a_method_of_the_default_recipe() -> None:
    for name in RECIPES:
        (cell,) = cells_of([name], [0.5], {"dataset": "builtin", "dataset_split": None})
        assert cell.config == RECIPES[name](dataset="builtin", dataset_split=None, keep_ratio=0.5)
    for name in method_names():
        (cell,) = cells_of([name], [0.5], {})
        assert cell.config == RECIPES["default"](method=name, keep_ratio=0.5)


def test_pattern_and_compensation_of_an_entry() -> None:
    (cell,) = cells_of(["statistical+none:2:4"], [0.5], {"compensation": "energy"})
    assert (cell.config.pattern, cell.config.compensation) == ("2:4", "none")
    assert cell.file_name == "statistical+none-2-4-0.5.json"


def test_all_cells_have_the_same_data_and_seed() -> None:
    assert RECIPES["paper"]().dataset != RECIPES["default"]().dataset
    cells = cells_of(["default", "paper", "flap"], [0.5], {"seed": "3"})
    assert len({(c.config.dataset, c.config.dataset_split, c.config.text_column, c.config.seed) for c in cells}) == 1
    cells = cells_of(["default", "paper"], [0.5], {"dataset": "corpus.txt"})
    assert {(c.config.dataset, c.config.dataset_split) for c in cells} == {("corpus.txt", None)}


@pytest.mark.parametrize(
    ("entries", "ratios", "options", "line"),
    [
        (["magic"], [0.5], {}, "--methods magic: no such recipe or method; there are the recipes "),
        (["flap+magic"], [0.5], {}, "--methods flap+magic: input should be 'auto', 'none'"),
        (["flap:2:4"], [0.5], {}, "--methods flap:2:4: flap supports only units"),
        (["statistical:3:7"], [0.5], {}, "--methods statistical:3:7: input should be 'units'"),
        (["statistical:2:4"], [0.5, 0.8], {}, "--keep-ratios 0.8: pattern 2:4 keeps exactly half"),
        (["+none"], [0.5], {}, "--methods +none: should look like NAME"),
        (["flap"], [0.5, 1.2], {}, "--keep-ratios 1.2: input should be less than or equal to 1"),
        (["flap"], ["half"], {}, "--keep-ratios half: input should be a valid number"),
        (["flap"], [0.5], {"epochs": "many"}, "--epochs many: input should be a valid integer"),
        (["flap"], [0.5], {"compensation": "magic"}, "--compensation magic: input should be"),
    ],
)
def test_bad_cells(entries: list[str], ratios: list[object], options: dict[str, Any], line: str) -> None:
    with pytest.raises(OptionError) as caught:
        cells_of(entries, ratios, options)
    assert caught.value.flag_line.startswith(line)


def test_reading_corpora(corpus_file: Path) -> None:
    corpora = read_corpora([f"all={corpus_file}", f"end={corpus_file}[90%:]"], "text")
    assert list(corpora) == ["all", "end"]
    assert corpora["all"].text.endswith(corpora["end"].text) and corpora["end"].split == "[90%:]"
    (builtin,) = read_corpora(["x=builtin[test]"], "text").values()
    assert builtin.split == "test"


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["corpus.txt"], "should look like NAME=PATH"),
        (["a=/nowhere.txt"], "no such file"),
        (["a=builtin[test]", "a=sampled"], "another corpus has this name"),
        (["a b=builtin[test]", "a/b=sampled"], "another corpus has this name"),
        (["a=sampled[9:x]"], "should look like"),
    ],
)
def test_bad_corpora(entries: list[str], message: str) -> None:
    with pytest.raises(OptionError, match=message) as caught:
        read_corpora(entries, "text")
    assert caught.value.option == "evaluate"


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
    def saved(seed: int) -> dict[str, Any]:
        model = build_model(seed=seed)
        model.save_pretrained(tmp_path / str(seed))
        return identity(str(tmp_path / str(seed)), model.config)

    assert saved(0) == identity(str(model_folder), build_model().config)
    assert saved(1) != saved(0)


def test_widening_leaves_the_dense_model(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    dense = model.bfloat16()
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    text = "Number one is followed by number two. " * 40
    for method, options in (("magnitude", {}), ("statistical", {"pattern": "2:4"})):
        config = GRASPConfig(method=method, compensation="none", **QUICK, **options)
        pruned = GRASPPruner(config).prune_model(dense, tokenizer, [text])
        wide = widened(pruned)
        assert {tensor.dtype for tensor in wide.parameters()} == {torch.float32}
        assert {tensor.dtype for tensor in pruned.parameters()} == {torch.bfloat16}
        assert set(before) == set(dense.state_dict())
        for name, tensor in dense.state_dict().items():
            assert tensor.dtype == before[name].dtype and torch.equal(tensor, before[name]), name
        wide.model.embed_tokens.weight.data.zero_()
        assert torch.equal(dense.model.embed_tokens.weight, before["model.embed_tokens.weight"])


def test_a_model_in_fp32_is_not_copied(model: LlamaForCausalLM) -> None:
    assert widened(model) is model
    tokens_BS = torch.arange(2, 12)[None]
    assert torch.allclose(
        logits_of(widened(copy.deepcopy(model).bfloat16()), tokens_BS), logits_of(model, tokens_BS), atol=1
    )


def comparison(model_folder: Path, corpus_file: Path, output: Path, **options: Any) -> Comparison:
    cells = cells_of(["random"], [0.5], {**QUICK, "dataset": str(corpus_file), **options})
    return Comparison(
        str(model_folder), cells, read_corpora([f"end={corpus_file}[90%:]"], "text"), output, window=32, limits=[3]
    )


def test_damaged_or_foreign_cells_are_run_again(model_folder: Path, corpus_file: Path, tmp_path: Path) -> None:
    first = comparison(model_folder, corpus_file, tmp_path).run()
    file = tmp_path / "cells" / "random-0.5.json"
    good = json.loads(file.read_text())
    for content in ("{", "[]", "{}", json.dumps({**good, "inputs": {}})):
        file.write_text(content)
        again = comparison(model_folder, corpus_file, tmp_path).run()
        assert again["cells"][0]["perplexity"] == first["cells"][0]["perplexity"]
        assert json.loads(file.read_text())["inputs"] == good["inputs"]


def test_checks_before_any_work(model_folder: Path, corpus_file: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    corpora = read_corpora([f"end={corpus_file}[90%:]"], "text")
    for entries, ratios, options, window, error, message in (
        (["flap"], [0.5], {"dataset": "/nowhere.txt"}, 32, OptionError, "no such file"),
        (["flap"], [0.5], {"seq_len": 200}, 32, OptionError, "the model reads at most 128 tokens"),
        (["flap"], [0.8, 0.01], {}, 32, OptionError, "keep_ratios=0.01: too small for"),
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


def test_data_free_cells_do_not_depend_on_the_corpus() -> None:
    assert not Cell("random", GRASPConfig(method="random")).calibrated
    assert Cell("random+scales", GRASPConfig(method="random", compensation="scales")).calibrated
    assert Cell("flap+none", GRASPConfig(method="flap", compensation="none")).calibrated


def test_excess_loss_and_points() -> None:
    assert excess_loss(RESULT, RESULT["cells"][1], "wiki") == pytest.approx(math.log(1.1))
    assert points_of(RESULT, "held out|text") == {"default": [(0.6, 20.0), (0.9, 6.0)], "random": [(0.9, 9.0)]}
    assert failed(RESULT) == ["random at 0.5"]


def test_markdown() -> None:
    lines = markdown(RESULT).splitlines()
    assert lines[0] == "# Comparison of pruning methods on models/tiny"
    assert "Calibrated on `corpus.txt` with seed 7." in lines[2]
    assert "- held out|text: `corpus.txt`, `[90%:]`, 9 windows of 32 tokens, sha256 `cdcdcdcdcdcdcdcd…`" in lines
    table = [line for line in lines if line.startswith("| ")]
    assert table[0].startswith(
        "| method | keep ratio | kept of all | KV cache | held out\\|text | Δ nats | wiki | Δ nats |"
    )
    assert table[2] == "| dense |  | 100.0% | 100.0% | 5.000 | 0 | 100.00 | 0 |  |  |"
    assert table[3:] == [
        "| default | 0.8 | 90.0% | 50.0% | **6.000** | **+0.182** | 110.00 | +0.095 | least squares + scales | 1,234 |",
        "| random | 0.8 | 90.0% | 50.0% | 9.000 | +0.588 | **105.00** | **+0.049** | none | 1,234 |",
        "| default | 0.5 | 60.0% | 50.0% | 20.00 | +1.386 | 1,500 | +2.708 | least squares + scales | 1,234 |",
        "| random | 0.5 | – | – | – | – | – | – | failed: the loss is not finite | – |",
    ]
    assert {line.count("|") - line.count("\\|") for line in table} == {11}


def test_markdown_says_what_sparse_means() -> None:
    assert "the file is no smaller" not in markdown(RESULT)
    sparse = copy.deepcopy(RESULT)
    sparse["cells"][0]["recipe"]["pattern"] = "2:4"
    assert "Of 2:4, what is not zero counts as kept: the file is no smaller." in markdown(sparse)


def test_records_without_shares_are_shown() -> None:
    bare = copy.deepcopy(RESULT)
    bare["cells"][0]["kept"] = {}
    assert full_table(bare)[1][3][2:4] == ["–", "–"]
    assert points_of(bare, "wiki")["default"] == [(0.9, 110.0)]
    assert "kept_kv_cache" in csv_text(bare)


def test_csv() -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text(RESULT))))
    assert [(row["method"], float(row["keep_ratio"])) for row in rows] == [
        ("dense", 1.0),
        ("default", 0.8),
        ("random", 0.8),
        ("default", 0.5),
        ("random", 0.5),
    ]
    assert float(rows[3]["perplexity[wiki]"]) == 1500.25
    assert float(rows[3]["excess_loss[held out|text]"]) == pytest.approx(math.log(4))
    assert float(rows[1]["kept_parameters"]) == 0.9
    assert rows[1]["compensation"] == "least_squares+scales"
    assert rows[4]["error"] == "the loss is not finite" and rows[4]["perplexity[wiki]"] == ""
    assert not any(None in row for row in rows)


def test_short_table() -> None:
    columns, rows = short_table(RESULT)
    assert columns == ["method", "ratio", "kept", "KV", "held out|text", "wiki"]
    assert rows[0] == ["dense", "", "100.0%", "100.0%", "5.000", "100.00"]
    assert rows[-1] == ["random", "0.5", "–", "–", "failed", "failed"]


def test_writing_tables(tmp_path: Path) -> None:
    write_tables(RESULT, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["comparison.csv", "comparison.json", "comparison.md"]
    assert json.loads((tmp_path / "comparison.json").read_text()) == RESULT
    with pytest.raises(CheckpointError, match="cannot be written"):
        write_tables(RESULT, tmp_path / "nowhere")


def test_texts_of_numbers_and_names() -> None:
    assert [shown(value) for value in (4.6712, 12.345, 2228.1)] == ["4.671", "12.35", "2,228"]
    assert slug("held out|text: a/b") == "held-out-text-a-b"
