from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from optimum_grasprune import GRASPConfig, GRASPPruner, PruningPlan, UnitMask
from optimum_grasprune.config import DeploymentOptions
from optimum_grasprune.export.checkpoint import read_record
from optimum_grasprune.families import family_of
from optimum_grasprune.loading import load_config
from optimum_grasprune.report import LayerShares
from optimum_grasprune.serving.inspection import shares_kept
from optimum_grasprune.units import FFN, KV, Address
from tests.commands.conftest import Outcome
from tests.conftest import make_model, make_record, make_tokenizer

Cli = Callable[..., Outcome]
SIZE = ("--gpu-memory", "1GiB", "--overhead", "64MiB")


@pytest.fixture(scope="module")
def pruned_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In bf16, of three layers of two KV heads and 48 channels: one head gone in the first, 24 channels in each."""
    model = make_model().to(torch.bfloat16)
    inventory = family_of(model.config).inventory(model)
    kept = torch.ones(inventory.num_units, dtype=torch.bool)
    kept[inventory.index(Address(0, KV), 1)] = False
    for layer in range(3):
        kept[inventory.slice_of(Address(layer, FFN))] = torch.arange(48) < 24
    pruner = GRASPPruner(GRASPConfig())
    pruner.replay(model, make_tokenizer(), PruningPlan.from_mask(UnitMask(inventory, kept)))
    folder = tmp_path_factory.mktemp("inspected") / "pruned"
    pruner.save(folder)
    return folder


def inspected(cli: Cli, tmp_path: Path, *options: object) -> tuple[dict[str, Any], str]:
    outcome = cli("inspect", *options, "--json", tmp_path / "result.json")
    assert outcome.code == 0, outcome.error_lines
    return json.loads((tmp_path / "result.json").read_text()), outcome.out


def test_options_are_the_fields(cli: Cli) -> None:
    help_text = cli("inspect", "--help").out
    assert [name for name in DeploymentOptions.model_fields if f"--{name.replace('_', '-')} " not in help_text] == []


def test_what_fits_dense_and_pruned(cli: Cli, pruned_folder: Path, tmp_path: Path) -> None:
    result, out = inspected(cli, tmp_path, "-m", pruned_folder, *SIZE, "--context", 100)
    deployment = result["deployment"]
    # Keys and values of 8 elements in two bytes: 32 bytes a head. Six heads dense, five pruned.
    assert deployment["dense"]["kv_bytes_per_token"] == 6 * 32
    assert deployment["model"]["kv_bytes_per_token"] == 5 * 32 == result["kv_bytes_per_token"]
    assert deployment["model"]["weights"] == 2 * result["parameters"]
    left = -(-(2**30) * 9 // 10) - 2**26 - 2 * result["parameters"]
    assert deployment["model"]["kv_tokens"] == left // (16 * 160) * 16
    assert deployment["model"]["sequences"] == left // (16 * 160) // 7
    assert "pruned ÷ dense" in out and "sequences of 100 tokens" in out


def test_dense_model_may_be_named(cli: Cli, pruned_folder: Path, model_folder: Path, tmp_path: Path) -> None:
    own, _ = inspected(cli, tmp_path, "-m", pruned_folder, *SIZE)
    named, _ = inspected(cli, tmp_path, "-m", pruned_folder, *SIZE, "--dense", model_folder)
    assert named["deployment"] == own["deployment"]


def test_dense_model_alone(cli: Cli, model_folder: Path, tmp_path: Path) -> None:
    result, out = inspected(cli, tmp_path, "-m", model_folder, *SIZE)
    assert result["deployment"]["dense"] is None and result["deployment"]["context"] == 128  # what it reads at most
    assert result["deployment"]["model"]["kv_bytes_per_token"] == 6 * 32  # fp32 is served in half precision
    assert "this model" in out and "÷" not in out


def test_cache_in_fp8_takes_half(cli: Cli, pruned_folder: Path, tmp_path: Path) -> None:
    result, _ = inspected(cli, tmp_path, "-m", pruned_folder, *SIZE, "--kv-cache-dtype", "fp8")
    assert result["deployment"]["model"]["kv_bytes_per_token"] == 5 * 16


def test_split_among_gpus(cli: Cli, pruned_folder: Path, tmp_path: Path) -> None:
    result, out = inspected(cli, tmp_path, "-m", pruned_folder, *SIZE, "--tensor-parallel-size", 2)
    assert result["tensor_parallel_sizes"] == [1, 2]
    assert result["ffn_multiple_of"] == 24
    # One head of each layer, the first one's on both GPUs.
    assert result["deployment"]["model"]["kv_bytes_per_token"] == 3 * 32
    assert "each of 2 GPUs" in out and "tensor-parallel sizes: 1, 2" in out


def test_what_does_not_fit_is_said(cli: Cli, pruned_folder: Path, tmp_path: Path) -> None:
    result, out = inspected(cli, tmp_path, "-m", pruned_folder, "--gpu-memory", "64MiB", "--overhead", "64MiB")
    assert result["deployment"]["model"]["sequences"] == 0 > result["deployment"]["model"]["kv_memory"]
    assert "–" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--gpu-memory", "24"), "--gpu-memory 24: should be a size like 24GiB, 80GB or 512MiB"),
        (("--gpu-memory", "much"), "--gpu-memory much: should be a size like"),
        (("--context", 64), "--context 64: is of use only with --gpu-memory"),
        (("--dense", "x"), "--dense x: is of use only with --gpu-memory"),
        ((*SIZE, "--context", 129), "--context 129: the model reads at most 128 tokens"),
        ((*SIZE, "--context", 0), "--context 0: input should be greater than"),
        ((*SIZE, "--gpu-memory-utilization", 1.5), "--gpu-memory-utilization 1.5: input should be less than"),
        ((*SIZE, "--kv-cache-dtype", "int3"), "--kv-cache-dtype int3: input should be 'auto', 'float16'"),
        (
            (*SIZE, "--tensor-parallel-size", 4),
            "cannot be split so; sizes that split every layer: 1, 2",
        ),
        ((*SIZE, "--dense", "./nowhere"), "the model folder ./nowhere does not exist"),
    ],
)
def test_bad_input_is_one_line(cli: Cli, pruned_folder: Path, options: tuple[object, ...], message: str) -> None:
    outcome = cli("inspect", "-m", pruned_folder, *options)
    assert outcome.code == 2
    assert len(outcome.error_lines) == 1 and message in outcome.error_lines[0], outcome.error_lines
    assert not outcome.out.strip()


def test_widths_are_drawn(cli: Cli, pruned_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name, start in (("shape.png", b"\x89PNG"), ("shape.svg", b"<?xml")):
        outcome = cli("inspect", "-m", pruned_folder, "--plot", tmp_path / name)
        assert outcome.code == 0, outcome.error_lines
        assert (tmp_path / name).read_bytes().startswith(start)
    drawing = (tmp_path / "shape.svg").read_text()
    assert str(tmp_path) not in drawing and str(pruned_folder.parent) not in drawing


def test_all_of_it_on_one_page(cli: Cli, pruned_folder: Path, model_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    page = tmp_path / "shape.html"
    outcome = cli("inspect", "-m", pruned_folder, "--gpu-memory", "24GiB", "--context", "64", "--html", page)
    assert outcome.code == 0, outcome.error_lines
    html = page.read_text(encoding="utf-8")
    assert html.count("<img ") == 1 and "--keep-ratio" in html
    titles = re.findall(r"<h2 id=.*?>(.*?)</h2>", html)
    assert [title for title in titles if title != "What the choice was made by"] == [
        *("Shape", "What is kept", "How it was made", "Training", "Scores", "Layers", "What fits", "Recipe")
    ]
    assert str(pruned_folder.parent) not in html
    outcome = cli("inspect", "-m", model_folder, "--html", page)
    assert outcome.code == 0, outcome.error_lines
    assert re.findall(r"<h2 id=.*?>(.*?)</h2>", page.read_text(encoding="utf-8")) == ["Shape", "Layers"]
    refused = cli("inspect", "-m", model_folder, "--html", tmp_path / "shape.pdf")
    assert refused.code == 2 and "--html" in refused.error_lines[0] and ".html or .htm" in refused.error_lines[0]


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("shape.pdf", "shape.pdf: should end in .png or .svg"),
        ("none/shape.png", "shape.png: cannot be written: no such folder"),
        ("folder.png", "folder.png: cannot be written"),
    ],
)
def test_a_drawing_that_cannot_be_written(
    cli: Cli, pruned_folder: Path, tmp_path: Path, file: str, message: str
) -> None:
    (tmp_path / "folder.png").mkdir()
    outcome = cli("inspect", "-m", pruned_folder, "--plot", tmp_path / file)
    assert outcome.code == 2 and len(outcome.error_lines) == 1, outcome.error_lines
    assert "--plot " in outcome.error_lines[0] and message in outcome.error_lines[0]
    assert not outcome.out.strip() and not (tmp_path / "none").exists()


def test_shares_that_are_drawn(pruned_folder: Path, model_folder: Path) -> None:
    halves = [LayerShares(0.5, 0.5), LayerShares(0.5, 1.0), LayerShares(0.5, 1.0)]
    assert shares_kept(load_config(str(pruned_folder)), read_record(pruned_folder)) == halves
    assert shares_kept(load_config(str(pruned_folder))) == halves
    assert shares_kept(load_config(str(model_folder))) == [LayerShares(1.0, 1.0)] * 3
    model = make_model()
    inventory = family_of(model.config).inventory(model)
    kept = torch.ones(inventory.num_units, dtype=torch.bool)
    for kind in (FFN, KV):
        kept[inventory.slice_of(Address(1, kind))] = False
    plan = PruningPlan.from_mask(UnitMask(inventory, kept, whole_layers=True))
    record = replace(make_record(), plan=plan)
    layers = [LayerShares(1.0, 1.0), LayerShares(0.0, 0.0), LayerShares(1.0, 1.0)]
    assert shares_kept(make_model(num_hidden_layers=2).config, record) == layers


def test_drawing_needs_matplotlib(
    cli: Cli, pruned_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optimum.commands.grasprune.base.import_module", _without_matplotlib)
    outcome = cli("inspect", "-m", pruned_folder, "--plot", tmp_path / "shape.png")
    line = 'plots need matplotlib: pip install "optimum-grasprune[plot]", or leave out --plot'
    assert outcome.error_lines == [f"optimum-cli grasprune inspect: error: {line}"]
    outcome = cli("inspect", "-m", pruned_folder, "--html", tmp_path / "shape.html")
    assert outcome.error_lines == [f"optimum-cli grasprune inspect: error: {line.replace('--plot', '--html')}"]


def _without_matplotlib(name: str) -> None:
    raise ModuleNotFoundError(name="matplotlib.figure")
