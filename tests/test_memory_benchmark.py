"""`benchmarks/memory.py`, on the smallest shape."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from optimum_grasprune import GRASPConfig
from optimum_grasprune.dummy import shape_config
from optimum_grasprune.estimate import Job
from tests.conftest import script

GIB = 2**30


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return script("benchmarks/memory.py")


def test_limits_are_those_that_were_asked_for(bench: ModuleType) -> None:
    job = Job.of(GRASPConfig(), shape_config("open-llama-3b"), device="cpu")
    layer = 2 * (4 * 3200 * 3200 + 3 * 3200 * 8640 + 2 * 3200)
    assert bench.LIMITS["2 GiB + 3 layers"](job, 0) == 2 * GIB + 3 * layer
    assert bench.LIMITS["3 GiB"](job, 0) == 3 * GIB
    assert bench.LIMITS["1.3 × weights + activations"](job, 100) == 2 * 3_426_473_600 * 13 // 10 + 100
    stages = {"gates": {"weights": 9, "activations": 5, "logits": 2}, "least squares": {"matrices of a layer": 6}}
    assert bench.activations(stages) == 7


def test_a_table_with_what_was_measured_and_what_was_not(bench: ModuleType) -> None:
    case = bench.Measured(
        shape="tiny",
        runner="whole",
        command="export",
        weights=GIB,
        largest_layer=GIB // 4,
        limit=2 * GIB,
        limit_of="3 GiB",
        estimate=3 * GIB // 2,
        resident=2 * GIB,
        libraries=GIB,
        seconds=1.0,
    )
    other = bench.replace(case, resident=None, libraries=None, skipped="no such runner")
    above = bench.replace(case, limit=GIB)
    *_, row, skipped, too_large = bench.results_table({"a": case, "b": other, "c": above}).splitlines()
    assert row == "| a | tiny | 2.00 | 1.00 | 2.50 (+25%) | 1.00 | 0.25 | 2.00 (3 GiB) | within |"
    assert skipped == "| b | tiny |  |  | 1.50 without | 1.00 | 0.25 | 2.00 (3 GiB) | no such runner |"
    assert too_large.endswith("| **above** |")


def test_what_fits_on_which_card(bench: ModuleType) -> None:
    header, _, first, *rows = bench.cards_table().splitlines()
    assert header == "| model | recipe | 24 GB | 40 GB | 80 GB |"
    assert first.startswith("| LLaMA-2-7B | default, ρ = 0.5 | whole: ")
    assert len(rows) == len(bench.MODELS) * len(bench.RECIPES) - 1
    assert not any("whole" in row for row in rows if row.startswith("| LLaMA-2-70B"))


def test_cases_are_run_and_added_to_the_file(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit, options = "1.3 × weights + activations", ("--method", "magnitude")
    cases = {name: bench.Case("tiny", "whole", limit, options) for name in ("magnitude", "failing")}
    monkeypatch.setattr(bench, "CASES", cases)
    output = tmp_path / "results" / "memory.json"

    def run(name: str) -> None:
        monkeypatch.setattr(sys, "argv", ["memory.py", "--cases", name, "--output", str(output)])
        bench.main()

    def fail(*_: object) -> None:
        raise RuntimeError("no such thing")

    run("magnitude")
    monkeypatch.setattr(bench, "peak_of", fail)
    run("failing")
    found = json.loads(output.read_text())["cases"]
    assert [*found] == ["magnitude", "failing"]
    case = found["magnitude"]
    assert case["resident"] >= case["libraries"] > 2**27 and case["estimate"] > case["weights"] > 0
    assert found["failing"]["skipped"] == "failed: no such thing" and found["failing"]["resident"] is None
    assert "| magnitude | tiny |" in output.with_suffix(".md").read_text()


def test_a_command_that_fails_says_why(bench: ModuleType) -> None:
    with pytest.raises(RuntimeError, match="^the last line$"):
        bench.peak_of([sys.executable, "-c", "import sys; sys.exit('the first\\nthe last line')"], "cpu")
    used = bench.peak_of([sys.executable, "-c", "import time; x = b'1' * 2**26; time.sleep(0.5)"], "cpu")
    assert 2**26 < used.resident < 2**28 and used.device is None
