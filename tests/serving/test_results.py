"""What is written is read again, also what version 0.1 wrote."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from optimum_grasprune.errors import CheckpointError
from optimum_grasprune.serving.page import markdown, short_memory_table, short_table
from optimum_grasprune.serving.results import Result, read_results, write_results

FOLDER = Path(__file__).parents[2] / "benchmarks" / "results"
# `benchmark.json` of earlier versions, beside the pages that those made of them.
OLDER = sorted((FOLDER / "serving-smollm2-cpu").glob("*.json"))


def test_there_are_older_ones() -> None:
    assert OLDER


@pytest.mark.parametrize("path", OLDER, ids=lambda path: path.stem)
def test_results_of_earlier_versions(path: Path) -> None:
    result = read_results(path)
    content = json.loads(path.read_text())
    assert result.to_dict() == content and json.dumps(result.to_dict()) == json.dumps(content)  # the order too
    assert markdown(result) == path.with_suffix(".md").read_text()
    assert len(short_memory_table(result)[1]) == len(result.checkpoints) and short_table(result)[1]


def test_written_and_read(result: Result, tmp_path: Path) -> None:
    write_results(result, tmp_path)
    assert read_results(tmp_path / "benchmark.json") == result


def test_without_servers_only_the_loading_is_told(result: Result, tmp_path: Path) -> None:
    loaded = tuple(
        replace(
            start,
            **dict.fromkeys(("dtype", "weight_gib", "engine_seconds", "kv_cache_tokens", "max_concurrency")),
            seconds=None,
            kv_cache_dtype=None,
        )
        for start in result.starts
    )
    runs = tuple(replace(run, percentiles=None) for run in result.runs)
    result = replace(result, starts=loaded, runs=runs)
    content = result.to_dict()
    assert all(set(start) == {"checkpoint", "repetition", "load_seconds"} for start in content["starts"])
    assert all("percentiles" not in run for run in content["runs"])
    write_results(result, tmp_path)
    assert read_results(tmp_path / "benchmark.json") == result


def test_the_engine_is_told_where_the_mode_does_not_tell(result: Result, tmp_path: Path) -> None:
    assert "engine" not in result.to_dict()
    write_results(replace(result, engine="another"), tmp_path)
    assert json.loads((tmp_path / "benchmark.json").read_text())["engine"] == "another"
    assert read_results(tmp_path / "benchmark.json").engine == "another"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "is no benchmark of format 1, but of 99"),
        ({"runs": 3}, "is damaged: runs: "),
        ({"machine": {"device": "x"}}, "is damaged: machine.cores: "),
        ({"options": {"repetitions": "many"}}, "is damaged: options.repetitions: "),
    ],
)
def test_what_is_no_benchmark(result: Result, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "benchmark.json"
    path.write_text(json.dumps({**result.to_dict(), **change}))
    with pytest.raises(CheckpointError, match=message):
        read_results(path)


@pytest.mark.parametrize(("text", "message"), [("[]", "of format 1, but of None"), ("{", "is not JSON")])
def test_other_files(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        read_results(tmp_path / "x.json")
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        read_results(tmp_path / "none.json")
