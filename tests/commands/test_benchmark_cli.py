"""The benchmark from the command line, as far as it needs no engine."""

from __future__ import annotations

import importlib.util
import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands.conftest import Outcome
from tests.tiny_models import tiny_model

Cli = Callable[..., Outcome]
Benchmark = Callable[..., Outcome]


@pytest.fixture
def pruned_folder(cli: Cli, model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pruned") / "half"
    assert cli("export", "-m", model_folder, "--method", "magnitude", "--keep-ratio", "0.5", folder).code == 0
    return folder


@pytest.fixture
def benchmark(cli: Cli, model_folder: Path, pruned_folder: Path, tmp_path: Path) -> Benchmark:
    def run(*options: object) -> Outcome:
        return cli("benchmark", "--dense", model_folder, "--pruned", pruned_folder, *options, tmp_path / "out")

    return run


def test_generate(cli: Cli, model_folder: Path, pruned_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    models = ("--dense", model_folder, "--pruned", pruned_folder, "--pruned", f"again={pruned_folder}")
    # OUTPUT stands straight after an option that takes many values.
    options = ("--mode", "generate", "--repetitions", 2, "--lengths", "8:4", "--concurrency", 1, 2)
    outcome = cli("benchmark", *models, "--json", tmp_path / "result.json", *options, tmp_path / "out")
    assert outcome.code == 0, outcome.error_lines
    assert "tokens in decode" not in outcome.out and "decode step, ms" in outcome.out
    result = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    assert result == json.loads((tmp_path / "result.json").read_text())
    assert [item["name"] for item in result["checkpoints"]] == ["dense", "half", "again"]
    assert len(result["runs"]) == 2 * 3 * 2 and len(result["starts"]) == 2 * 3
    assert {row["metric"] for row in result["comparisons"]} >= {"prefill_throughput", "decode_throughput"}
    assert all(row["limit"] > 1 for row in result["comparisons"] if row["metric"] == "decode_throughput")
    assert result["versions"]["transformers"] and result["machine"]["cores"] >= 1
    files = {file.name for file in (tmp_path / "out").iterdir()}
    assert files == {"benchmark.json", "benchmark.md", "benchmark-logs", "throughput-8-4.png", "throughput-8-4.svg"}


def test_models_that_read_less_than_the_usual_lengths(benchmark: Benchmark, tmp_path: Path) -> None:
    outcome = benchmark("--mode", "generate", "--repetitions", 1, "--concurrency", 1, "--no-plot", "--seed", 0)
    assert outcome.code == 0, outcome.error_lines
    result = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    assert [point["name"] for point in result["points"]] == ["64:64 × 1"] and len(result["runs"]) == 2


def test_help(cli: Cli) -> None:
    outcome = cli("benchmark", "--help")
    assert outcome.code == 0
    assert "example:\n  optimum-cli grasprune benchmark " in outcome.out and "--json FILE" in outcome.out


def test_help_loads_no_torch() -> None:
    code = (
        "import sys; sys.argv = ['optimum-cli', 'grasprune', 'benchmark', '--help']\n"
        "from optimum.commands.optimum_cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'vllm', 'matplotlib', 'optimum_grasprune'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--mode", "fast"), "--mode fast: no such mode; there are serve, long-context, offline, generate"),
        (("--mode", "generate", "--port", 8000), "--port 8000: has no meaning in --mode generate"),
        (("--mode", "generate", "--lengths", "0:4"), "--lengths 0:4: should look like PROMPT:OUTPUT"),
        (("--mode", "generate", "--lengths", "100:29"), "--lengths 100:29: the model "),
        (("--mode", "generate", "--concurrency", "x", "1"), "--concurrency x: should be a whole number"),
        (("--mode", "generate", "--repetitions", 0), "--repetitions 0: should be at least 1"),
        (("--mode", "generate", "--seed", -1), "--seed -1: should be at least 0"),
        (("--mode", "generate", "--device", "gpu"), "--device gpu: "),
        (("--mode", "generate", "--pruned", "/nowhere/x"), "the model folder /nowhere/x does not exist"),
        (("--mode", "generate", "--dense", "/nowhere/dense"), "the model folder /nowhere/dense does not exist"),
        (("--mode", "generate", "--json", "/nowhere/x.json"), "--json /nowhere/x.json: cannot be written"),
    ],
)
def test_bad_input(benchmark: Benchmark, tmp_path: Path, options: tuple[object, ...], message: str) -> None:
    outcome = benchmark(*options)
    assert outcome.code == 2 and len(outcome.error_lines) == 1, outcome.error_lines
    assert outcome.error_lines[0].startswith("optimum-cli grasprune benchmark: error: ")
    assert message in outcome.error_lines[0]
    assert not (tmp_path / "out" / "benchmark.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--device", "cpu"), "--device cpu: has no meaning in --mode serve"),
        (("--mode", "offline", "--together"), "--together: has no meaning in --mode offline"),
        (("--mode", "offline", "--prompts", "p.jsonl"), "--prompts p.jsonl: has no meaning in --mode offline"),
        (("--prompts", "/nowhere/p.jsonl"), "--prompts /nowhere/p.jsonl: cannot be read: No such file"),
        (("--kv-cache-memory", "much"), "--kv-cache-memory much: should be a number of GiB above 0"),
        (("--kv-cache-memory", "0"), "--kv-cache-memory 0: should be a number of GiB above 0"),
        (("--serve-flags", "--x 'y"), "--serve-flags --x 'y: No closing quotation"),
        (("--mode", "long-context", "--concurrency", "2", "4", "--seed", 0), "--concurrency 2 4: --mode long-context"),
        (("--mode", "long-context", "--kv-cache-memory", "0.000001"), "give more --kv-cache-memory"),
        (("--mode", "long-context", "--concurrency", "1", "--kv-cache-memory", "1"), "1 overflow nothing"),
    ],
)
def test_bad_input_of_modes_with_vllm(
    benchmark: Benchmark, tmp_path: Path, options: tuple[object, ...], message: str
) -> None:
    pytest.importorskip("vllm")
    outcome = benchmark(*options)
    assert outcome.code == 2 and len(outcome.error_lines) == 1, outcome.error_lines
    assert message in outcome.error_lines[0]
    assert not (tmp_path / "out").exists()


def test_a_port_in_use(benchmark: Benchmark) -> None:
    pytest.importorskip("vllm")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        outcome = benchmark("--lengths", "8:4", "--port", port)
    assert outcome.code == 2 and len(outcome.error_lines) == 1
    assert f"--port {port}: cannot be used: Address already in use" in outcome.error_lines[0]


def test_a_folder_that_holds_something_else(benchmark: Benchmark, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    outcome = benchmark("--mode", "generate")
    assert outcome.code == 2 and "holds something other than a benchmark" in outcome.error_lines[0]


def test_output_is_required(cli: Cli, model_folder: Path, pruned_folder: Path) -> None:
    outcome = cli("benchmark", "--dense", model_folder, "--pruned", pruned_folder, "--concurrency", 1, 2)
    assert outcome.code == 2
    assert outcome.error_lines[-1].endswith("the following arguments are required: OUTPUT")


def test_without_vllm(benchmark: Benchmark, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    assert importlib.util.find_spec("vllm") is None
    outcome = benchmark()
    assert outcome.code == 2 and len(outcome.error_lines) == 1
    assert "vLLM is not installed" in outcome.error_lines[0] and "--mode generate" in outcome.error_lines[0]


def test_no_sum_over_tokens_says_what_windows_hold(cli: Cli, tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    tiny_model("Gemma 3").save_pretrained(tmp_path / "gemma")  # two of its layers see 8 tokens
    models = ("--dense", tmp_path / "gemma", "--pruned", f"same={tmp_path / 'gemma'}")
    long = ("--mode", "long-context", "--concurrency", 2)
    outcome = cli("benchmark", *models, *long, "--lengths", "5:4", tmp_path / "out")
    (line,) = outcome.error_lines
    assert outcome.code == 2 and "--mode long-context: layers of the model" in line
    assert "see a window of fewer than 9 tokens" in line and not (tmp_path / "out").exists()
    outcome = cli("benchmark", *models, *long, "--lengths", "4:4", "--seed", 0, tmp_path / "out")
    assert "2 overflow nothing" in outcome.error_lines[0]  # as far as windows go, it may be planned
