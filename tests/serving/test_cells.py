"""A benchmark beside the cells of a comparison."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from transformers import LlamaConfig

from optimum_grasprune.comparison import ComparisonResult
from optimum_grasprune.errors import CheckpointError, OptionError
from optimum_grasprune.serving.cells import read_benchmark, with_speeds
from optimum_grasprune.serving.results import Result, write_results
from tests.comparison.test_tables import RESULT


def with_widths(*widths: tuple[tuple[int, int], tuple[int, int]]) -> ComparisonResult:
    stored = RESULT.to_dict()
    for cell, (ffn, kv_heads) in zip(stored["cells"], widths, strict=False):
        cell["widths"] = {"ffn": list(ffn), "kv_heads": list(kv_heads)}
    return ComparisonResult.from_dict(stored, "comparison.json")


def test_cells_of_the_same_widths_are_as_fast(result: Result) -> None:
    compared = with_speeds(with_widths(((64, 100), (1, 1)), ((100, 64), (1, 1))), result)
    assert compared.served is not None
    # Of two points the one with four requests at once: medians of 4 × (100, 50, 80) and 4 × (150, 100, 100).
    assert (compared.served.tokens_per_second, compared.served.repetitions) == (320.0, 3)
    assert (compared.served.point, compared.served.mode) == (result.points[1].name, "serve")
    first, *others = (cell.served for cell in compared.cells)
    assert first is not None and (first.tokens_per_second, first.ratio) == (400.0, 1.5)  # paired: 1.5, 2, 1.25
    assert others == [None] * 3
    assert dataclasses.replace(compared, served=None).cells[1:] == with_speeds(compared, result).cells[1:]


def test_benchmarks_that_do_not_fit(result: Result, tmp_path: Path) -> None:
    path = str(tmp_path / "benchmark.json")
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 8}
    for name, width in (("fits", 128), ("other", 64)):
        LlamaConfig(**sizes, intermediate_size=width, num_key_value_heads=2).save_pretrained(tmp_path / name)
    write_results(result, tmp_path)
    assert read_benchmark(path, str(tmp_path / "fits")) == result
    with pytest.raises(OptionError, match="is of another model: its dense one has other widths"):
        read_benchmark(path, str(tmp_path / "other"))
    write_results(dataclasses.replace(result, comparisons=()), tmp_path)
    with pytest.raises(OptionError, match="has no speed of a pruned checkpoint"):
        read_benchmark(path, str(tmp_path / "fits"))
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_benchmark(str(tmp_path / "none.json"), str(tmp_path / "fits"))
