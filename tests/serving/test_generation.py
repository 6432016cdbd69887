from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from optimum_grasprune import GRASPConfig, GRASPPruner
from optimum_grasprune.errors import ModelError, OptionError
from optimum_grasprune.loading import load_model
from optimum_grasprune.serving.checkpoints import read_checkpoints
from optimum_grasprune.serving.engines import transformers
from optimum_grasprune.serving.engines.transformers import rates
from optimum_grasprune.serving.measure import measurements
from optimum_grasprune.serving.plan import Plan
from optimum_grasprune.serving.results import RunOptions
from optimum_grasprune.serving.workload import Lengths, Point
from tests.conftest import make_model, make_tokenizer


@pytest.fixture
def pruned_folder(tmp_path: Path) -> Path:
    pruner = GRASPPruner(GRASPConfig(method="magnitude", keep_ratio=0.5, dtype="float32", compensation="none"))
    pruner.prune_model(make_model(), make_tokenizer())
    pruner.save(tmp_path / "half")
    return tmp_path / "half"


def test_rates_by_hand() -> None:
    found = rates(Point(Lengths(100, 11), 2, 16), prefill=0.5, whole=1.5)
    assert found["prefill_throughput"] == 400 and found["prefill_ms"] == 500
    assert found["decode_throughput"] == pytest.approx(20) and found["decode_step_ms"] == pytest.approx(100)
    assert found["output_throughput"] == pytest.approx(22 / 1.5)


@pytest.mark.parametrize("together", [False, True])
def test_repetitions_are_interleaved(model_folder: Path, pruned_folder: Path, together: bool) -> None:
    checkpoints = read_checkpoints(str(model_folder), [str(pruned_folder)])
    points = [Point(Lengths(8, 4), batch, batch) for batch in (1, 2)]
    options = RunOptions(repetitions=2, together=together)
    plan = Plan("transformers", "generate", checkpoints, points, model_folder, options, device="cpu")
    result = measurements(plan)
    order = [(run.repetition, run.checkpoint, run.point) for run in result.runs]
    names = ("dense", "half")
    assert order == [(turn, name, point.name) for turn in range(2) for name in names for point in points]
    assert len(result.starts) == (2 if together else 4)
    assert all(run.metrics["decode_throughput"] > 0 for run in result.runs)
    dense, pruned = (run.seed for run in result.runs if run.repetition == 0 and run.point == "8:4 × 1")
    assert dense == pruned


def test_a_model_is_gone_before_the_next_is_loaded(
    model_folder: Path, pruned_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[weakref.ref[PreTrainedModel]] = []

    def load(*arguments: Any, **options: Any) -> PreTrainedModel:
        gc.collect()
        assert not any(reference() for reference in loaded)
        model = load_model(*arguments, **options)
        loaded.append(weakref.ref(model))
        return model

    monkeypatch.setattr(transformers, "load_model", load)
    checkpoints = read_checkpoints(str(model_folder), [str(pruned_folder)])
    options = RunOptions(repetitions=2)
    measurements(Plan("transformers", "generate", checkpoints, [Point(Lengths(8, 4), 1, 1)], model_folder, options))
    assert len(loaded) == 4


def test_checkpoints(model_folder: Path, pruned_folder: Path) -> None:
    dense, half = read_checkpoints(str(model_folder), [f"uniform={pruned_folder}"])
    assert (dense.name, half.name) == ("dense", "uniform")
    assert dense.ffn_widths == (48, 48, 48) and dense.kv_heads == (2, 2, 2) and dense.longest == 128
    assert half.shape.parameters < dense.shape.parameters and half.kept["prunable"] <= 0.5
    facts = half.describe(2, 1)
    assert facts.weight_bytes == 2 * half.shape.parameters
    assert facts.kv_bytes_per_token == half.shape.kv_width == 16 * sum(half.kv_heads)


def test_names_must_differ(model_folder: Path) -> None:
    with pytest.raises(OptionError, match="another checkpoint is called dense; name them as in NAME="):
        read_checkpoints(str(model_folder), [str(model_folder)])


def test_missing_folder(model_folder: Path) -> None:
    with pytest.raises(ModelError, match="/nowhere/half does not exist"):
        read_checkpoints(str(model_folder), ["/nowhere/half"])
