"""The scripts in benchmarks/gpu, on the CPU with the tiny shape."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from optimum_grasprune.families.shape import LayerShape, ModelShape

FOLDER = Path(__file__).parents[2] / "benchmarks" / "gpu"
NAMES = ("figures", "floor", "machine", "serving", "smoke", "training")
TINY = ("--shape", "tiny", "--device", "cpu")


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, ModuleType]]:
    sys.path.insert(0, str(FOLDER))
    try:
        yield {name: importlib.import_module(name) for name in NAMES}
    finally:
        sys.path.remove(str(FOLDER))
        for name in NAMES:
            sys.modules.pop(name, None)


def run(monkeypatch: pytest.MonkeyPatch, script: ModuleType, *options: object) -> None:
    monkeypatch.setattr(sys, "argv", ["script", *map(str, options)])
    script.main()


def test_operations_that_cannot_be_avoided(scripts: dict[str, ModuleType]) -> None:
    # One layer: 4 query heads of 2 elements cost 10 each, 2 KV heads 20, 5 channels 3; 50 in the head, 7 in norms.
    shape = ModelShape((LayerShape(4, 2, 5),), 10, 5, 2, 10, 20, 3, 100, 100, True, 7)
    floor = scripts["floor"]
    assert floor.matrix_parameters(shape) == 40 + 40 + 15 + 50
    assert floor.attention_width(shape) == 8
    assert floor.forward_operations(shape, 3) == 2 * 145 * 3 + 2 * 9 * 8
    assert floor.gate_step_operations(shape, 3) == 4 * 145 * 3 + 6 * 9 * 8


def test_widths_to_try_are_round_and_odd(scripts: dict[str, ModuleType]) -> None:
    assert scripts["smoke"].widths_to_try(11008) == [5503, 5500, 5496, 5440, 5504]
    assert scripts["smoke"].widths_to_try(704) == [255, 252, 248, 192, 256]


def test_relative_error_sees_one_wrong_value(scripts: dict[str, ModuleType]) -> None:
    reference = torch.linspace(-1, 1, 5001)
    found = reference.clone()
    found[-1] = 0
    assert scripts["smoke"].relative_error(found, reference) == pytest.approx(1 / (1 + reference.std().item()))
    assert scripts["smoke"].relative_error(reference, reference) == 0


def test_flags_of_the_benchmark_are_added_to(scripts: dict[str, ModuleType]) -> None:
    with_flags = scripts["serving"].with_flags
    assert with_flags(["--repetitions", "2"]) == ["--repetitions", "2", "--serve-flags=--load-format dummy"]
    given = ["--serve-flags=--enforce-eager", "--together"]
    assert with_flags(given) == ["--together", "--serve-flags=--load-format dummy --enforce-eager"]


def test_a_training_cut_short_says_so(
    scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    options = (*TINY, "--sequences", 4, "--seq-len", 16, "--epochs", 2, "--output", tmp_path)
    run(monkeypatch, scripts["training"], *options, "--steps", 2)
    result = json.loads((tmp_path / "training-grasprune-tiny.json").read_text())
    assert (result["steps"], result["steps_run"], result["extrapolated"]) == (8, 2, True)
    assert result["seconds"] == pytest.approx(8 * result["step_seconds"])
    assert result["times_the_floor"] == pytest.approx(result["seconds"] / result["floor_seconds"])
    assert result["peak_bytes"] > 0

    run(
        monkeypatch,
        scripts["training"],
        *TINY,
        "--method",
        "fasp",
        "--sequences",
        4,
        "--seq-len",
        16,
        "--output",
        tmp_path,
    )
    result = json.loads((tmp_path / "training-fasp-tiny.json").read_text())
    assert 0.4 < result["kept"] <= 0.5 and result["seconds"] > 0

    options = ("--method", "default", "--sequences", 4, "--seq-len", 16)
    run(monkeypatch, scripts["training"], *TINY, *options, "--output", tmp_path)
    result = json.loads((tmp_path / "training-default-tiny.json").read_text())
    assert 0.4 < result["kept"] <= 0.5 and result["sequences"] == 4 and result["card_gib"] is None
    assert result["times_the_floor"] == pytest.approx(result["seconds"] / result["floor_seconds"])


def test_a_card_that_is_not_there_is_refused(
    scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, scripts["training"], *TINY, "--card", 24, "--output", tmp_path / "out")
    assert ended.value.code == 2 and "--card 24: there is no card, the device is cpu" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_rates_without_the_engine_and_plots(
    scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run(monkeypatch, scripts["smoke"], *TINY, "--no-engine", "--output", tmp_path)
    result = json.loads((tmp_path / "smoke.json").read_text())
    assert result["errors"] == {} and all(row["up_tflops"] > 0 for row in result["products"])
    machine = {"device": "a device"}
    for method, seconds in (("grasprune", 30.0), ("fasp", 12.0)):
        row = {"method": method, "shape": "tiny", "machine": machine, "seconds": seconds, "floor_seconds": 5.0}
        (tmp_path / f"training-{method}.json").write_text(json.dumps(row))
    run(monkeypatch, scripts["figures"], tmp_path)
    for name in ("products", "training"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert b"<svg" in (tmp_path / f"{name}.svg").read_bytes()


@pytest.mark.engine
@pytest.mark.timeout(900)
def test_layers_of_the_engine_agree_with_torch(scripts: dict[str, ModuleType]) -> None:
    pytest.importorskip("vllm")
    smoke = scripts["smoke"]
    errors = smoke.kernel_errors(256, [344, 351], torch.device("cpu"))
    assert set(errors) == {"rms_norm", "silu_and_mul 344", "silu_and_mul 351"}
    assert max(errors.values()) <= smoke.TOLERANCES["kernels"]
