"""How a run goes: what it shows meanwhile, what it needs, and whether it can be had again."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers import LlamaForCausalLM

from optimum_grasprune import numerics, progress
from optimum_grasprune.errors import GraspruneError
from optimum_grasprune.execution import instrument, whole
from optimum_grasprune.execution.loss import next_token_loss
from tests.commands.conftest import Outcome
from tests.conftest import make_model, make_tokenizer

Cli = Callable[..., Outcome]
QUICK = ("--num-samples", 4, "--seq-len", 24, "--epochs", 1)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    return screen


def export(cli: Cli, model: Path, corpus: Path, output: Path, *options: object) -> Outcome:
    return cli("export", "-m", model, "--dataset", corpus, *QUICK, *options, output)


def saved(model: LlamaForCausalLM, folder: Path) -> Path:
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def recipe_of(folder: Path) -> dict[str, object]:
    return json.loads((folder / "grasp_config.json").read_text())["recipe"]


def test_one_bar_at_a_time_on_a_terminal(
    cli: Cli, model_folder: Path, corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = on_a_terminal(monkeypatch)
    options = ("--search-trials", 3, "--search-samples", 2, "--held-out", 4)
    assert export(cli, model_folder, corpus_file, tmp_path / "out", *options).code == 0
    shown = terminal.getvalue()
    shown = shown[shown.index("sensitivity") :]
    names = re.findall(r"([a-z ]+): +\d+%\|", shown)
    bars = [name for name, before in zip(names, [None, *names], strict=False) if name != before]
    assert bars == [
        "sensitivity",
        "teacher",
        "gates",
        "candidates",
        "widths",
        "candidates",
        "teacher",
        "reconstruction",
        "loss",
        "diagonals",
        "loss",
        "writing",
    ]
    assert "Loading weights" not in shown
    assert shown.count("\n") == len(bars)  # every bar ends, and keeps its line


def test_the_outer_bar_says_what_goes_on_inside(
    cli: Cli, model_folder: Path, corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = on_a_terminal(monkeypatch)
    monkeypatch.setattr(progress, "_REDRAW_INTERVAL", 0.0)
    options = ("--method", "flap", "--held-out", 4)
    assert export(cli, model_folder, corpus_file, tmp_path / "out", *options).code == 0
    assert re.search(r"candidates: +0%\|.*loss 3/4", terminal.getvalue())


def test_a_log_gets_lines_and_only_now_and_then(
    cli: Cli, model_folder: Path, corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert export(cli, model_folder, corpus_file, tmp_path / "short").error_lines == []
    now = [0.0]

    def clock() -> float:
        now[0] += 1.0
        return now[0]

    monkeypatch.setattr(progress, "monotonic", clock)
    outcome = export(cli, model_folder, corpus_file, tmp_path / "long", "--held-out", 8)
    assert outcome.code == 0
    assert 0 < len(outcome.error_lines) <= now[0] / 30 * 2
    assert all(re.match(r"[a-z ]+: +(\d+% )?\d+", line) for line in outcome.error_lines)


@pytest.mark.parametrize(
    ("error", "code", "last"),
    [
        (
            KeyboardInterrupt(),
            130,
            "interrupted; the same command goes on from there, --resume no starts anew (state in {state})",
        ),
        (GraspruneError("the cat ate it"), 2, "optimum-cli grasprune export: error: the cat ate it"),
    ],
)
def test_whatever_stops_a_run_is_told_on_a_line_of_its_own(
    error: BaseException,
    code: int,
    last: str,
    cli: Cli,
    model_folder: Path,
    corpus_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop(*given: Any, **options: Any) -> Any:
        if torch.is_grad_enabled():  # of the sensitivities and of training, which come before
            return next_token_loss(*given, **options)
        raise error

    terminal = on_a_terminal(monkeypatch)
    monkeypatch.setattr(whole, "next_token_loss", stop)
    assert export(cli, model_folder, corpus_file, tmp_path / "out", "--held-out", 4).code == code
    *bars, line, end = terminal.getvalue().split("\n")
    assert (line, end) == (last.format(state=tmp_path / ".out.grasprune-state"), "")
    assert bars[-1].split("\r")[-1].startswith("candidates:   0%|")
    assert not progress._open


def test_downloads_show_their_own_bars_on_a_terminal_only(
    cli: Cli, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    were_disabled = are_progress_bars_disabled()
    try:
        for screen, disabled in ((Terminal(), False), (io.StringIO(), True)):
            enable_progress_bars()
            monkeypatch.setattr(sys, "stderr", screen)
            assert cli("inspect", "-m", model_folder).code == 0
            assert are_progress_bars_disabled() is disabled
            assert screen.getvalue() == ""
    finally:
        (disable_progress_bars if were_disabled else enable_progress_bars)()


@pytest.mark.parametrize("method", ["grasprune", "fisher", "taylor"])
def test_gradient_checkpointing_reaches_every_backward_pass(
    method: str, cli: Cli, model_folder: Path, corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recomputed: list[object] = []

    def spied(function: object, *arguments: object, **options: object) -> object:
        recomputed.append(function)
        return checkpoint(function, *arguments, **options)

    checkpoint = instrument.checkpoint
    monkeypatch.setattr(instrument, "checkpoint", spied)
    options = ("--method", method, "--compensation", "none", "--start-rounds", 2)
    assert export(cli, model_folder, corpus_file, tmp_path / "plain", *options).code == 0
    assert not recomputed
    assert export(cli, model_folder, corpus_file, tmp_path / "saving", *options, "--gradient-checkpointing").code == 0
    # Three layers; four sequences for the scores, and for the gates four steps and the second round's two.
    assert len(recomputed) == 3 * (4 + 4 + 2 if method == "grasprune" else 4)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("plain", "saving")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("dead", [1, 30, 48])
def test_start_rounds_with_dead_channels(
    dead: int, cli: Cli, corpus_file: Path, tmp_path: Path, model: LlamaForCausalLM
) -> None:
    for layer in model.model.layers:
        layer.mlp.up_proj.weight.data[:dead] = 0
    folder = saved(model, tmp_path / "dense")
    outcome = export(cli, folder, corpus_file, tmp_path / "out", "--start-rounds", 4, "--keep-ratio", 0.4)
    assert outcome.code == 0, outcome.error_lines
    if dead == 30:
        plan = json.loads((tmp_path / "out" / "grasp_config.json").read_text())["plan"]
        channels = [group for group in plan["groups"] if group["kind"] == "ffn"]
        # 54 live ones are enough for the budget: of the dead none stays but where a layer has nothing else.
        assert all(min(group["kept"]) >= dead or len(group["kept"]) > 18 for group in channels)


def test_deterministic(cli: Cli, model_folder: Path, corpus_file: Path, tmp_path: Path) -> None:
    for name, options in (("plain", ()), ("deterministic", ("--deterministic",))):
        assert export(cli, model_folder, corpus_file, tmp_path / name, *options).code == 0
        assert recipe_of(tmp_path / name)["deterministic"] is (name == "deterministic")
        assert not torch.are_deterministic_algorithms_enabled()
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("plain", "deterministic")]
    assert weights[0] == weights[1]  # on a CPU it changes nothing


def test_a_record_from_before_the_option_is_replayed(
    cli: Cli, model_folder: Path, corpus_file: Path, tmp_path: Path
) -> None:
    assert export(cli, model_folder, corpus_file, tmp_path / "first", "--method", "fasp").code == 0
    record = json.loads((tmp_path / "first" / "grasp_config.json").read_text())
    del record["recipe"]["deterministic"]
    old = tmp_path / "old.json"
    old.write_text(json.dumps(record))
    assert cli("export", "-m", model_folder, "--plan", old, "--deterministic", tmp_path / "second").code == 0
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "second")]
    assert weights[0] == weights[1]


def test_least_squares_of_numbers_beyond_fp32(
    cli: Cli, corpus_file: Path, tmp_path: Path, model: LlamaForCausalLM
) -> None:
    """The model computes what it did, but its inputs' squares are infinite."""
    mlp = model.model.layers[1].mlp
    mlp.up_proj.weight.data.mul_(1e20)
    mlp.down_proj.weight.data.mul_(1e-20)
    folder = saved(model, tmp_path / "dense")
    for options in ((), ("--restoration", "dense")):
        outcome = export(cli, folder, corpus_file, tmp_path / "out", "--method", "fasp", *options)
        assert outcome.code == 2 and len(outcome.error_lines) == 1
        assert "the least squares of model.layers.1.mlp.down_proj cannot be solved" in outcome.error_lines[0]
        assert not (tmp_path / "out").exists()


def sharpened(folder: Path) -> Path:
    """A model so sure of itself, and so wrong, that no float holds its perplexity."""
    model = make_model()
    model.lm_head.weight.data.mul_(1e6)
    return saved(model, folder)


def test_evaluate_where_no_float_holds_the_perplexity(
    cli: Cli, model_folder: Path, corpus_file: Path, tmp_path: Path
) -> None:
    folder, result = sharpened(tmp_path / "sharp"), tmp_path / "result.json"
    options = ("--dataset", corpus_file, "--seq-len", 32, "--num-samples", 3, "--json", result)
    for model, dense in ((folder, model_folder), (model_folder, folder), (folder, folder)):
        outcome = cli("evaluate", "-m", model, "--dense", dense, *options)
        assert outcome.code == 0, outcome.error_lines
        assert "inf" in outcome.out
        for measured in json.loads(result.read_text())["models"]:
            assert (measured["perplexity"] is None) is (measured["model"] == str(folder))
            assert measured["loss"] > 0


def test_compare_where_no_float_holds_the_perplexity(cli: Cli, corpus_file: Path, tmp_path: Path) -> None:
    folder, out, result = sharpened(tmp_path / "sharp"), tmp_path / "out", tmp_path / "result.json"
    command = ("compare", "-m", folder, "--methods", "magnitude", "random", "--keep-ratios", 0.5)
    options = ("--evaluate", f"end={corpus_file}[90%:]", "--eval-seq-len", 32, "--eval-samples", 3, "--no-plot")
    for _ in range(2):  # the second finds all cells finished
        outcome = cli(*command, *options, "--json", result, out)
        assert outcome.code == 0, outcome.error_lines
        assert "inf" in outcome.out
        cells = json.loads(result.read_text())["cells"]
        assert [cell["perplexity"]["end"] for cell in cells] == [None, None]
        assert all(cell["loss"]["end"] > 709 for cell in cells)
    assert "finished before" in outcome.out
    assert "inf" in (out / "comparison.md").read_text() and ",inf," in (out / "comparison.csv").read_text()


@pytest.mark.filterwarnings("always::optimum_grasprune.errors.GraspruneWarning")
@pytest.mark.parametrize("terminal", [False, True])
def test_half_precision_in_software_is_one_line(
    terminal: bool, cli: Cli, model_folder: Path, corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(numerics, "_LITTLE", 1e6)
    numerics._tell_once.cache_clear()
    screen = on_a_terminal(monkeypatch) if terminal else None
    done = export(cli, model_folder, corpus_file, tmp_path / "half", "--method", "wanda_sp", "--dtype", "bfloat16")
    assert done.code == 0
    lines = re.split(r"[\r\n]+", screen.getvalue()) if screen else done.error_lines
    (line,) = (line for line in lines if "this CPU" in line)
    assert line.startswith("optimum-cli grasprune export: warning: this CPU computes bfloat16 in software")
    assert line.endswith("give --dtype float32, or model.float()")
    numerics._tell_once.cache_clear()
    done = export(cli, model_folder, corpus_file, tmp_path / "full", "--method", "wanda_sp", "--dtype", "float32")
    assert done.code == 0 and not any("this CPU" in line for line in done.error_lines)
