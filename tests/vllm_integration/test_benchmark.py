"""The benchmark on the real engine: a whole run, a long-context run, the failures a user meets, and sudden ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from optimum_grasprune import GRASPConfig, GRASPPruner
from optimum_grasprune.loading import load_model, load_tokenizer
from optimum_grasprune.serving.checkpoints import Checkpoint, read_checkpoints
from optimum_grasprune.serving.engines.base import BenchmarkError
from optimum_grasprune.serving.engines.vllm.server import ServerError
from optimum_grasprune.serving.measure import measurements
from optimum_grasprune.serving.plan import Plan
from optimum_grasprune.serving.results import RunOptions
from optimum_grasprune.serving.workload import Lengths, Point
from tests.conftest import TINY_LLAMA, make_model, make_tokenizer

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]
pytest.importorskip("vllm")

EAGER = "--serve-flags=--enforce-eager"
MIB = 2**20
BLOCK = 128
SECONDS = 400


@pytest.fixture(scope="module")
def pruned_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = load_model(str(TINY_LLAMA))
    pruner = GRASPPruner(GRASPConfig(method="magnitude", keep_ratio=0.5, kv_keep_ratio=0.5, compensation="none"))
    pruner.prune_model(model, load_tokenizer(str(TINY_LLAMA)))
    folder = tmp_path_factory.mktemp("benchmark") / "half"
    pruner.save(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoints(pruned_folder: Path) -> list[Checkpoint]:
    return read_checkpoints(str(TINY_LLAMA), [str(pruned_folder)])


def command(pruned: Path, output: Path, *options: str) -> list[str]:
    start = [sys.executable, "-m", "optimum.commands.optimum_cli", "grasprune", "benchmark", "--dense", str(TINY_LLAMA)]
    return [*start, "--pruned", str(pruned), EAGER, "--no-plot", *options, str(output)]


def benchmark(pruned: Path, output: Path, *options: str) -> dict[str, Any]:
    done = subprocess.run(command(pruned, output, *options), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads((output / "benchmark.json").read_text())


def ratios_of(result: dict[str, Any], metric: str) -> dict[str, Any]:
    (row,) = (row for row in result["comparisons"] if row["metric"] == metric)
    return row


def test_dense_beside_pruned(pruned_folder: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(f'{{"prompt": "Once upon a time there were {n} owls"}}\n' for n in range(4)))
    workload = ("--prompts", str(prompts), "--output-len", "8", "--num-prompts", "4", "--concurrency", "2")
    options = ("--together", "--repetitions", "2", "--kv-cache-memory", "0.0625")
    result = benchmark(pruned_folder, tmp_path / "out", *workload, *options)

    order = [(run["repetition"], run["checkpoint"]) for run in result["runs"]]
    assert order == [(0, "dense"), (0, "half"), (1, "dense"), (1, "half")]
    dense, half = result["memory"]
    # At the same memory, to within a block of each.
    expected = dense["kv_cache_tokens"] * half["kv_ratio_computed"]
    assert abs(half["kv_cache_tokens"] - expected) <= BLOCK * (1 + half["kv_ratio_computed"])
    assert dense["kv_cache_tokens"] == 64 * MIB // (BLOCK * 3072) * BLOCK
    for metric in ("output_throughput", "p99_ttft_ms", "mean_tpot_ms", "p50_itl_ms", "engine_step_ms"):
        row = ratios_of(result, metric)
        assert row["dense"]["median"] > 0 and row["ratio"]["low"] <= row["ratio"]["median"] <= row["ratio"]["high"]
    assert all(run["metrics"]["output_tokens"] == 8 for run in result["runs"])
    assert {start["dtype"] for start in result["starts"]} == {"bfloat16"}
    assert all(start["load_seconds"] is not None and start["seconds"] > 1 for start in result["starts"])
    assert (tmp_path / "out" / "benchmark-logs" / "half-1.server.log").stat().st_size > 1000
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"benchmark.json", "benchmark.md", "benchmark-logs"}


def test_long_context_overflows_only_the_dense_cache(pruned_folder: Path, tmp_path: Path) -> None:
    workload = ("--lengths", "128:256", "--concurrency", "6", "--num-prompts", "6", "--repetitions", "1")
    result = benchmark(pruned_folder, tmp_path / "out", "--mode", "long-context", *workload)
    dense, half = (row["kv_cache_tokens"] for row in result["memory"])
    assert dense < 6 * 384 <= half
    queued, preempted = ratios_of(result, "mean_queue_ms"), ratios_of(result, "preemptions")
    assert preempted["dense"]["median"] > 0 or queued["dense"]["median"] > 10 * queued["pruned"]["median"]
    assert preempted["pruned"]["median"] == 0
    page = (tmp_path / "out" / "benchmark.md").read_text()
    assert "6 sequences of 384 tokens at once" in page and "Requests served per second" in page


def test_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TQDM_DISABLE", "1")  # vLLM needs its bar
    # A vocabulary of its own: `vllm bench latency` draws from 10,000 tokens.
    make_model(vocab_size=10_000, hidden_size=64, head_dim=32).save_pretrained(tmp_path / "wide")
    make_tokenizer().save_pretrained(tmp_path / "wide")
    checkpoints = read_checkpoints(str(tmp_path / "wide"), [])
    options = RunOptions(1, kv_cache_bytes=16 * MIB, serve_flags=("--enforce-eager", "--max-model-len", "64"))
    plan = Plan("vllm", "offline", checkpoints, [Point(Lengths(16, 4), 2, 4)], tmp_path, options)
    result = measurements(plan)
    (run,) = result.runs
    assert run.checkpoint == "dense" and run.metrics["mean_batch_ms"] > 0
    # Random bytes that are no text are encoded anew, as a few more; without our flags it would be 1,024 of them.
    assert run.metrics["prompt_tokens"] == pytest.approx(16, abs=8)
    assert run.metrics["output_throughput"] == pytest.approx(4 * run.metrics["request_throughput"])
    assert [line.split()[2] for line in result.commands] == ["throughput", "latency"]


def test_requests_that_the_server_refuses(checkpoints: list[Checkpoint], tmp_path: Path) -> None:
    options = RunOptions(1, kv_cache_bytes=16 * MIB, serve_flags=("--enforce-eager", "--max-model-len", "64"))
    point = Point(Lengths(80, 32), 2, 4)
    message = r"^dense at 80:32 × 2, repetition 1: a warm-up request failed: .*64.*; the end of its log:\n"
    with pytest.raises(BenchmarkError, match=re.compile(message, re.DOTALL)):
        measurements(Plan("vllm", "serve", checkpoints[:1], [point], tmp_path, options))


def test_a_cache_that_does_not_fit(checkpoints: list[Checkpoint], tmp_path: Path) -> None:
    options = RunOptions(kv_cache_bytes=2**50, serve_flags=("--enforce-eager",))
    message = r"^dense: .*memory.*: the server ended with code \d+ before it was ready; the end of its log:\n"
    with pytest.raises(ServerError, match=message):
        measurements(Plan("vllm", "serve", checkpoints, [Point(Lengths(8, 8), 1, 1)], tmp_path, options))


def processes_with(marker: str) -> list[int]:
    """Processes, zombies aside, that inherited an environment with this in it."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            ours = marker.encode() in (folder / "environ").read_bytes()
            zombie = (folder / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:  # it has just ended, or is another user's
            continue
        if ours and not zombie:
            found.append(int(folder.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="reads /proc")
@pytest.mark.parametrize(("sign", "processes"), [(signal.SIGKILL, 4), (signal.SIGTERM, 3)])
def test_no_server_outlives_the_benchmark(pruned_folder: Path, tmp_path: Path, sign: int, processes: int) -> None:
    # `processes`: the benchmark, its supervisor and the server, or the server's engine besides.
    marker = f"GRASPRUNE_TEST={tmp_path}"
    environment = {**os.environ, "GRASPRUNE_TEST": str(tmp_path)}
    started = subprocess.Popen(
        command(pruned_folder, tmp_path / "out"), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for(lambda: len(processes_with(marker)) >= processes)
        started.send_signal(sign)
        assert started.wait(SECONDS) == {signal.SIGKILL: -9, signal.SIGTERM: 143}[sign]
    finally:
        started.kill()
        started.wait(SECONDS)
    wait_for(lambda: not processes_with(marker))
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["benchmark-logs"]


def wait_for(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.1)
