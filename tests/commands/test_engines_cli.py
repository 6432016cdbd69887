"""Engines by name; one more is a file and its line in the registry, no other edit."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from optimum_grasprune.errors import GraspruneError, OptionError
from optimum_grasprune.serving.asked import CONCURRENCY, LENGTHS, OUTPUT_TOKENS, REPETITIONS, START_SECONDS, Asked
from optimum_grasprune.serving.engines import ENGINES, Session
from optimum_grasprune.serving.engines.base import ElementSizes
from optimum_grasprune.serving.engines.registry import chosen
from optimum_grasprune.serving.plan import Turn
from optimum_grasprune.serving.results import Run, RunOptions, read_results
from tests.commands.conftest import Outcome

PAGE = Path(__file__).parents[2] / "docs" / "adding-an-engine.md"
Cli = Callable[..., Outcome]

TOY = '''
from contextlib import contextmanager

from optimum_grasprune.serving.engines import Engine, Mode, Session, register
from optimum_grasprune.serving.engines.base import ElementSizes
from optimum_grasprune.serving.quantities import Quantity
from optimum_grasprune.serving.plan import Turn
from optimum_grasprune.serving.results import Start


class CountingSession(Session):
    """Counts its turns."""

    @contextmanager
    def running(self, checkpoint, repetition, place):
        self.starts.append(Start(checkpoint.name, repetition, load_seconds=0.5))
        yield checkpoint.shape.parameters

    def measure(self, running, turn):
        lengths = turn.point.lengths
        told = {"prompt_tokens": lengths.prompt, "output_tokens": lengths.output}
        self.announce(f"{turn}: counted")
        return turn.measured({**told, "output_throughput": 1e6 / running, "joules": 0.001 * running})


@register("toy")
class Toy(Engine):
    quantities = {"joules": Quantity("energy of a token", "J", False, "decode")}
    packages = ("pytest",)
    modes = {
        "serve": Mode(CountingSession, runs="a toy", headline=("joules",), without=("serve_flags",)),
        "count": Mode(CountingSession, runs="a toy that counts", headline=("output_throughput",)),
    }

    @classmethod
    def element_sizes(cls, options, stored):
        return ElementSizes(3, 5)
'''


def forget(name: str) -> None:
    ENGINES._classes.pop(name, None)
    ENGINES._modules.pop(name, None)


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Add the file and the line."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "toy_engine.py").write_text(TOY)
    monkeypatch.syspath_prepend(folder)
    ENGINES.declare("toy", "toy_engine")
    yield
    forget("toy")
    sys.modules.pop("toy_engine", None)


@pytest.fixture
def benchmark(cli: Cli, model_folder: Path, tmp_path: Path) -> Callable[..., Outcome]:
    same = ("--dense", model_folder, "--pruned", f"same={model_folder}", "--lengths", "8:4", "--concurrency", 2)
    return lambda *options: cli("benchmark", *same, "--repetitions", 2, *options, tmp_path / "out")


def test_a_toy_engine_on_the_command_line(toy: None, benchmark: Callable[..., Outcome], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    outcome = benchmark("--engine", "toy", "--json", tmp_path / "result.json")
    assert outcome.code == 0, outcome.error_lines
    assert "dense at 8:4 × 2, repetition 2: counted" in outcome.out and "energy of a token, J" in outcome.out
    content = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    assert (content["engine"], content["mode"]) == ("toy", "serve")
    assert content == json.loads((tmp_path / "result.json").read_text())
    assert content["versions"]["pytest"]
    rows = {row["metric"]: row for row in content["comparisons"]}
    assert set(rows) == {"output_throughput", "joules"} and rows["joules"]["ratio"]["median"] == 1
    assert rows["joules"]["limit"] == 1
    parameters = content["checkpoints"][0]["parameters"]
    assert content["checkpoints"][0]["weight_bytes"] == 3 * parameters
    page = (tmp_path / "out" / "benchmark.md").read_text()
    assert "a toy. 2 repetitions" in page and "| same | energy of a token, J |" in page
    assert (tmp_path / "out" / "throughput-8-4.png").is_file()
    assert read_results(tmp_path / "out" / "benchmark.json").engine == "toy"


def test_an_engine_that_measures_nothing_common(
    toy: None, benchmark: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    session = ENGINES.get("toy").modes["serve"].session
    measure = session.measure

    def without_throughput(self: Session[float], running: float, turn: Turn) -> Run:
        run = measure(self, running, turn)
        run.metrics.pop("output_throughput")
        return run

    monkeypatch.setattr(session, "measure", without_throughput)
    outcome = benchmark("--engine", "toy")
    assert outcome.code == 0, outcome.error_lines
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"benchmark.json", "benchmark.md", "benchmark-logs"}


def test_the_engine_of_the_page(
    benchmark: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, line = re.findall(r"```python\n(.+?)```", PAGE.read_text(), flags=re.DOTALL)[:2]
    module = "optimum_grasprune.serving.engines.echo"
    spec = importlib.util.spec_from_loader(module, loader=None)
    assert spec is not None
    monkeypatch.setitem(sys.modules, module, importlib.util.module_from_spec(spec))
    try:
        exec(line, {"ENGINES": ENGINES})
        exec(code, vars(sys.modules[module]))
        outcome = benchmark("--mode", "echo", "--no-plot")
    finally:
        forget("echo")
    assert outcome.code == 0, outcome.error_lines
    assert "a loop. 2 repetitions" in (tmp_path / "out" / "benchmark.md").read_text()


def test_a_mode_that_only_one_engine_has(toy: None, benchmark: Callable[..., Outcome], tmp_path: Path) -> None:
    outcome = benchmark("--mode", "count", "--no-plot")
    assert outcome.code == 0, outcome.error_lines
    assert "engine" not in json.loads((tmp_path / "out" / "benchmark.json").read_text())  # the mode tells
    assert "a toy that counts" in (tmp_path / "out" / "benchmark.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--engine", "slang"), "--engine slang: no such engine; there are vllm, transformers, toy"),
        (("--engine", ""), "--engine : no such engine; there are vllm, transformers, toy"),
        (("--engine", "toy", "--mode", "fast"), "--mode fast: no such mode of the engine toy; there are serve, count"),
        (("--engine", "transformers", "--mode", "serve"), "--mode serve: no such mode of the engine transformers"),
        (("--mode", ""), "--mode : no such mode; there are serve, long-context, offline, generate, count"),
        (("--mode", "fast"), "--mode fast: no such mode; there are serve, long-context, offline, generate, count"),
        (("--engine", "toy", "--serve-flags=--x"), "--serve-flags --x: has no meaning in --mode serve"),
        (("--engine", "transformers", "--port", 8000), "--port 8000: has no meaning in --mode generate"),
    ],
)
def test_bad_names(
    toy: None, benchmark: Callable[..., Outcome], tmp_path: Path, options: tuple[object, ...], message: str
) -> None:
    outcome = benchmark(*options)
    assert outcome.code == 2 and len(outcome.error_lines) == 1, outcome.error_lines
    assert outcome.error_lines[0].startswith(f"optimum-cli grasprune benchmark: error: {message}")
    assert not (tmp_path / "out").exists()


def test_engine_and_mode_by_what_was_asked() -> None:
    assert chosen(None, None) == ("vllm", "serve")
    assert chosen("transformers", None) == ("transformers", "generate") == chosen(None, "generate")
    assert chosen("vllm", "offline") == chosen(None, "offline") == ("vllm", "offline")
    with pytest.raises(OptionError, match="engine='x': no such engine; there are vllm, transformers"):
        chosen("x", None)


def test_an_engine_that_is_not_installed(toy: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ENGINES.get("toy"), "requires", {"no_such_package": "toys are not installed: buy one"})
    with pytest.raises(GraspruneError, match="toys are not installed: buy one"):
        Asked("a", ["b"], engine="toy").plan(tmp_path)


def test_transformers_runs_in_the_models_own_precision(benchmark: Callable[..., Outcome], tmp_path: Path) -> None:
    outcome = benchmark("--engine", "transformers", "--no-plot")
    assert outcome.code == 0, outcome.error_lines
    content = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    assert content["mode"] == "generate" and "engine" not in content
    dense = content["checkpoints"][0]
    # fp32 on disk: unlike vLLM, transformers does not halve it.
    assert dense["weight_bytes"] == 4 * dense["parameters"] and dense["kv_bytes_per_token"] == 3 * 2 * 2 * 8 * 4


def test_element_sizes_of_transformers() -> None:
    engine = ENGINES.get("transformers")
    assert engine.element_sizes(RunOptions(), "bfloat16") == ElementSizes(2, 2)
    assert engine.element_sizes(RunOptions(dtype="float32"), "bfloat16") == ElementSizes(4, 4)
    assert engine.element_sizes(RunOptions(dtype="auto"), "float32") == ElementSizes(4, 4)


def test_help_tells_the_defaults(cli: Cli) -> None:
    words = " ".join(cli("benchmark", "--help").out.split())
    for default in (
        f"{' '.join(map(str, CONCURRENCY))} by default",
        f"{' '.join(LENGTHS)} by default",
        f"tokens to generate for each of them; {OUTPUT_TOKENS} by default",
        f"interleaved; {REPETITIONS} by default",
        f"ready; {START_SECONDS} by default",
        "serve by default",
    ):
        assert default in words
