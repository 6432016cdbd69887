"""vLLM's sessions on a `vllm` command that only pretends: real processes, real requests, no engine."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from optimum_grasprune.serving.checkpoints import Checkpoint
from optimum_grasprune.serving.engines.base import BenchmarkError
from optimum_grasprune.serving.engines.vllm import offline, serve, server
from optimum_grasprune.serving.measure import assembled, measurements
from optimum_grasprune.serving.plan import Plan
from optimum_grasprune.serving.results import Measurements, RunOptions
from optimum_grasprune.serving.workload import Lengths, Point
from tests.serving.conftest import DENSE, HALF

PRETENDED = '''
import json, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

words = sys.argv[1:]
value = lambda flag: words[words.index(flag) + 1]
METRICS = """vllm:cache_config_info{cache_dtype="auto",kv_cache_size_tokens="1280",kv_cache_max_concurrency="2.5"} 1.0
vllm:request_decode_time_seconds_count 4.0
"""

class Handler(BaseHTTPRequestHandler):
    def answer(self, content):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(content.encode())
    def do_GET(self):
        self.answer(METRICS if self.path == "/metrics" else "")
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer("{}")

if words[0] == "serve":
    print("Loading weights took 0.25 seconds; dtype=torch.float16, of", words[1], flush=True)
    HTTPServer((value("--host"), int(value("--port"))), Handler).serve_forever()
elif words[1] == "serve":
    asked = int(value("--num-prompts"))
    times = {f"{kind}_{name}_ms": 5.0 for name in ("ttft", "tpot", "itl", "e2el") for kind in ("mean", "p50", "p99")}
    rates = dict.fromkeys(("request_throughput", "output_throughput", "total_token_throughput"), float(asked))
    generated = asked * int(value("--random-output-len"))
    result = {"completed": asked, "total_input_tokens": 8 * asked, "total_output_tokens": generated, **rates, **times}
    result |= {"ttfts": [0.1] * asked, "itls": [[0.01, 0.02]] * asked}
    Path(value("--result-dir"), value("--result-filename")).write_text(json.dumps(result))
elif words[1] == "throughput":
    asked = int(value("--num-prompts"))
    told = {"num_requests": asked, "total_num_tokens": 12 * asked}
    told |= {"requests_per_second": 2.0, "tokens_per_second": 24.0}
    Path(value("--output-json")).write_text(json.dumps(told))
else:
    Path(value("--output-json")).write_text(json.dumps({"latencies": [0.1, 0.3]}))
'''
POINTS = [Point(Lengths(8, 4), 1, 4), Point(Lengths(8, 4), 2, 6)]
ALONE = [(turn, name, point.name) for turn in range(2) for name in ("dense", "half") for point in POINTS]
TURNS = [(turn, name, point.name) for turn in range(2) for point in POINTS for name in ("dense", "half")]


@pytest.fixture(autouse=True)
def pretended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "vllm.py"
    script.write_text(PRETENDED)
    for module in (server, serve, offline):
        monkeypatch.setattr(module, "VLLM", (sys.executable, "-S", str(script)))


def planned(logs: Path, mode: str, points: list[Point] = POINTS, vocabulary: int = 10, **options: int | bool) -> Plan:
    checkpoints: list[Checkpoint] = [replace(item, vocabulary=vocabulary) for item in (DENSE, HALF)]
    chosen = RunOptions(2, kv_cache_bytes=20480, serve_flags=("--x",), **options)  # type: ignore[arg-type]
    return Plan("vllm", mode, checkpoints, points, logs, chosen)


def order(measured: Measurements) -> list[tuple[int, str, str]]:
    return [(run.repetition, run.checkpoint, run.point) for run in measured.runs]


@pytest.mark.parametrize(("together", "expected", "starts"), [(False, ALONE, 4), (True, TURNS, 2)])
def test_serve(tmp_path: Path, together: bool, expected: list[tuple[int, str, str]], starts: int) -> None:
    plan = planned(tmp_path, "serve", together=together, seed=7)
    lines: list[str] = []
    measured = measurements(plan, lines.append)
    assert order(measured) == expected and len(measured.starts) == starts
    assert [run.seed for run in measured.runs if run.checkpoint == "half"] == [7, 8, 1007, 1008]
    start = measured.starts[0]
    assert (start.dtype, start.load_seconds) == ("float16", 0.25)
    assert (start.kv_cache_tokens, start.max_concurrency) == (1280, 2.5)
    assert start.seconds is not None and start.seconds > 0 and start.kv_cache_dtype == "auto"
    assert all(run.percentiles and len(run.percentiles.itl) == 99 for run in measured.runs)
    assert lines[0] == "dense: starting the server" and "dense at 8:4 × 1, repetition 1: 4.0 output tokens/s" in lines
    assert len([command for command in measured.commands if command.startswith("vllm serve /m/half ")]) == starts // 2
    assert "--kv-cache-memory-bytes 20480 --x" in measured.commands[0]
    assert (tmp_path / "half-2-8-4-2.client.log").is_file()
    # The log says how the weights are served; the flags are silent.
    assert assembled(plan, measured, command="").checkpoints[0].weight_bytes == 2400


def test_long_context_takes_the_flags_of_its_point(tmp_path: Path) -> None:
    measured = measurements(planned(tmp_path, "long-context", POINTS[1:]))
    started = [command for command in measured.commands if command.startswith("vllm serve ")]
    assert len(started) == len(order(measured)) == 4
    assert all(command.endswith(" --max-model-len 12 --max-num-seqs 2 --x") for command in started)


@pytest.mark.parametrize(("vocabulary", "kinds"), [(10_000, ["throughput", "latency"]), (9_999, ["throughput"])])
def test_offline(tmp_path: Path, vocabulary: int, kinds: list[str]) -> None:
    lines: list[str] = []
    measured = measurements(planned(tmp_path, "offline", vocabulary=vocabulary), lines.append)
    assert order(measured) == TURNS and measured.starts == ()
    assert [command.split()[2] for command in measured.commands] == 8 * kinds
    assert ("mean_batch_ms" in measured.runs[0].metrics) is (len(kinds) == 2)
    assert lines[0].startswith("vllm bench latency is left out") is (len(kinds) == 1)


def test_a_client_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "VLLM", (sys.executable, "-c", "import sys; print('no such flag'); sys.exit(3)"))
    message = r"^dense at 8:4 × 1, repetition 1: the client ended with code 3; the end of its log:\nno such flag"
    with pytest.raises(BenchmarkError, match=message):
        measurements(planned(tmp_path, "serve"))
