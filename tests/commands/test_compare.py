from __future__ import annotations

import csv
import importlib.metadata
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from optimum_grasprune import GRASPPruner
from optimum_grasprune.errors import GraspruneError
from optimum_grasprune.loading import load_model
from optimum_grasprune.methods import Problem
from optimum_grasprune.methods.grasprune import GRASPrune
from tests.commands.conftest import Outcome

Cli = Callable[..., Outcome]
METHODS = ("flap", "flap+none", "random")
RATIOS = ("0.8", "0.5")


@pytest.fixture
def compare(cli: Cli, model_folder: Path, corpus_file: Path, tmp_path: Path) -> Cli:
    """Compare on the tiny model; returns the outcome. Later options override earlier ones."""

    def run(*options: object, methods: tuple[str, ...] = METHODS, ratios: tuple[str, ...] = RATIOS) -> Outcome:
        quick = ("--num-samples", 4, "--seq-len", 24, "--epochs", 1, "--eval-seq-len", 32, "--eval-samples", 4)
        corpora = ("--dataset", corpus_file, "--dataset-split", "[:90%]", "--evaluate", f"end={corpus_file}[90%:]")
        chosen = ("--methods", *methods, "--keep-ratios", *ratios)
        return cli("compare", "-m", model_folder, *chosen, *quick, *corpora, *options, "--no-plot", tmp_path / "out")

    return run


@pytest.fixture
def pruned(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float, bool]]:
    """Fills with (method, ratio, whether scores were given) of every cell that is run."""
    runs: list[tuple[str, float, bool]] = []
    prune = GRASPPruner.prune

    def counted(self: GRASPPruner, *arguments: Any, **options: Any) -> Any:
        runs.append((self.config.method, self.config.keep_ratio, options.get("earlier") is not None))
        return prune(self, *arguments, **options)

    monkeypatch.setattr(GRASPPruner, "prune", counted)
    return runs


def test_three_methods_at_two_ratios(compare: Cli, pruned: list[tuple[str, float, bool]], tmp_path: Path) -> None:
    out, copy = tmp_path / "out", tmp_path / "copy.json"
    outcome = compare("--json", copy)
    assert outcome.code == 0, outcome.error_lines
    assert "cell 6 of 6, random at 0.5: perplexity end " in outcome.out and "flap+none" in outcome.out

    result = json.loads((out / "comparison.json").read_text())
    assert result == json.loads(copy.read_text())
    assert [(cell["entry"], cell["keep_ratio"]) for cell in result["cells"]] == [
        (method, float(ratio)) for method in METHODS for ratio in RATIOS
    ]
    for cell in result["cells"]:
        assert cell["kept"]["prunable"] <= cell["keep_ratio"] + 0.01  # FLAP's biases are on top
        assert cell["weight_bytes"]["dense"] > cell["weight_bytes"]["pruned"] > 0
        assert cell["perplexity"]["end"] > 1 and cell["recipe"]["epochs"] == 1
    assert [cell["compensation"] for cell in result["cells"]][::2] == [["bias"], [], []]
    assert (result["corpora"]["end"]["windows"], result["corpora"]["end"]["window"]) == (4, 32)
    assert result["options"]["dataset_split"] == "[:90%]"
    assert set(result["versions"]) >= {"torch", "transformers", "optimum-grasprune", "python"}

    # FLAP's scores, computed once, served both ratios and both compensations.
    assert pruned == [("flap", 0.8, False)] + [("flap", r, True) for r in (0.5, 0.8, 0.5)] + [
        ("random", 0.8, False),
        ("random", 0.5, True),
    ]
    with (out / "comparison.csv").open() as file:
        assert [row["method"] for row in csv.DictReader(file)] == ["dense", *METHODS, *METHODS]
    assert (out / "comparison.md").read_text().count("\n| ") == 2 + 7
    assert not list(out.rglob(".*"))


def test_speeds_of_a_benchmark(compare: Cli, model_folder: Path, tmp_path: Path) -> None:
    """Its checkpoint has the widths of one cell, as those that `export` makes of the same recipe have."""
    assert compare(methods=("random",)).code == 0
    (_, half) = json.loads((tmp_path / "out" / "comparison.json").read_text())["cells"]
    serving = Path(__file__).parents[2] / "benchmarks" / "results" / "serving-smollm2-cpu" / "benchmark.json"
    benchmark = json.loads(serving.read_text())
    file = tmp_path / "benchmark.json"
    file.write_text(json.dumps(benchmark))
    outcome = compare("--benchmark", file, methods=("random",))
    assert outcome.code == 2 and "is of another model: its dense one has other widths" in outcome.error_lines[0]

    config = json.loads((model_folder / "config.json").read_text())
    layers = config["num_hidden_layers"]
    dense, pruned = benchmark["checkpoints"][:2]
    for checkpoint, ffn, kv_heads in (
        (dense, [config["intermediate_size"]] * layers, [config["num_key_value_heads"]] * layers),
        (pruned, half["widths"]["ffn"], half["widths"]["kv_heads"]),
    ):
        checkpoint["ffn_widths"], checkpoint["kv_heads"] = ffn, kv_heads
    file.write_text(json.dumps(benchmark))
    outcome = compare("--benchmark", file, methods=("random",))
    assert outcome.code == 0 and outcome.out.count("finished before") == 3, outcome.error_lines
    compared = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert compared["served"]["tokens_per_second"] > 0
    assert ["served" in cell for cell in compared["cells"]] == [False, True]
    assert "| tokens/s | × dense |" in (tmp_path / "out" / "comparison.md").read_text()


def test_the_dense_model_stays_as_it_was(compare: Cli, monkeypatch: pytest.MonkeyPatch, model_folder: Path) -> None:
    models: list[Any] = []
    prune = GRASPPruner.prune

    def watched(self: GRASPPruner, model: Any, *arguments: Any, **options: Any) -> Any:
        models.append(model)
        return prune(self, model, *arguments, **options)

    monkeypatch.setattr(GRASPPruner, "prune", watched)
    methods = ("flap", "random+scales", "statistical:unstructured")
    assert compare("--dtype", "bfloat16", methods=methods, ratios=("0.5",)).code == 0
    assert len(models) == 3 and len(set(map(id, models))) == 1  # loaded once
    untouched = load_model(str(model_folder), dtype="bfloat16").state_dict()
    for name, tensor in models[0].state_dict().items():
        assert tensor.dtype == torch.bfloat16 and torch.equal(tensor, untouched[name]), name


def test_cached_scores_give_what_each_cell_gives_alone(compare: Cli, tmp_path: Path) -> None:
    assert compare().code == 0
    together = json.loads((tmp_path / "out" / "comparison.json").read_text())
    (tmp_path / "out" / "cells" / "flap+none-0.5.json").unlink()
    assert compare(methods=("flap+none",), ratios=("0.5",)).code == 0
    (alone,) = json.loads((tmp_path / "out" / "comparison.json").read_text())["cells"]
    (same,) = (cell for cell in together["cells"] if (cell["entry"], cell["keep_ratio"]) == ("flap+none", 0.5))
    assert not alone["scores_reused"] and same["scores_reused"]
    assert alone["perplexity"] == same["perplexity"] and alone["kept"] == same["kept"]


def test_gates_are_trained_once_for_all_compensations(
    compare: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trained: list[float] = []
    candidates = GRASPrune.candidates

    def counted(self: GRASPrune, problem: Problem, *arguments: Any) -> Any:
        trained.append(problem.config.keep_ratio)
        return candidates(self, problem, *arguments)

    monkeypatch.setattr(GRASPrune, "candidates", counted)
    assert compare(methods=("default", "default+none", "default+least_squares")).code == 0
    assert trained == [0.8, 0.5]
    together = json.loads((tmp_path / "out" / "comparison.json").read_text())["cells"]
    assert [cell["choice_reused"] for cell in together] == [False, False, True, True, True, True]
    (tmp_path / "out" / "cells" / "default+none-0.5.json").unlink()
    assert compare(methods=("default+none",), ratios=("0.5",)).code == 0
    (alone,) = json.loads((tmp_path / "out" / "comparison.json").read_text())["cells"]
    assert not alone["choice_reused"] and alone["compensation"] == []
    for quantity in ("perplexity", "kept", "choice"):
        assert alone[quantity] == together[3][quantity]


def test_what_is_finished_is_not_run_again(compare: Cli, pruned: list[tuple[str, float, bool]], tmp_path: Path) -> None:
    cells = tmp_path / "out" / "cells"
    assert compare(methods=("random",)).code == 0
    first = (tmp_path / "out" / "comparison.json").read_bytes()
    times = {file: file.stat().st_mtime_ns for file in [*cells.iterdir(), tmp_path / "out" / "dense.json"]}
    pruned.clear()

    outcome = compare(methods=("random",))
    assert outcome.code == 0 and "cell 2 of 2, random at 0.5: finished before" in outcome.out
    assert pruned == [] and times == {file: file.stat().st_mtime_ns for file in times}
    assert (tmp_path / "out" / "comparison.json").read_bytes() == first

    (cells / "random-0.5.json").unlink()
    (cells / ".random-0.5.json.partial").write_text("{")  # what a killed run leaves
    assert compare(methods=("random", "magnitude")).code == 0
    assert pruned == [("random", 0.5, False), ("magnitude", 0.8, False), ("magnitude", 0.5, True)]


@pytest.mark.parametrize(
    "change", [("--seed", 1), ("--eval-samples", 3), ("--eval-seq-len", 30), ("--min-kv-groups", 2)]
)
def test_what_would_come_out_differently_is_run_again(
    compare: Cli, pruned: list[tuple[str, float, bool]], change: tuple[object, ...]
) -> None:
    options = {"methods": ("random",), "ratios": ("0.8",)}
    assert compare(**options).code == 0
    assert compare(*change, **options).code == 0
    assert len(pruned) == 2
    assert compare(*change, **options).code == 0
    assert len(pruned) == 2


@pytest.mark.parametrize("package", ["optimum-grasprune", "torch", "transformers"])
def test_results_of_other_versions_are_not_taken_for_finished(
    compare: Cli, pruned: list[tuple[str, float, bool]], monkeypatch: pytest.MonkeyPatch, package: str, tmp_path: Path
) -> None:
    options = {"methods": ("random",), "ratios": ("0.8",)}
    assert compare(**options).code == 0
    dense = (tmp_path / "out" / "dense.json").stat().st_mtime_ns
    installed = importlib.metadata.version
    other = lambda name: "0.0.1" if name == package else installed(name)  # noqa: E731
    monkeypatch.setattr("optimum_grasprune.record.environment.version", other)
    outcome = compare(**options)
    assert outcome.code == 0 and len(pruned) == 2 and "finished before" not in outcome.out
    assert (tmp_path / "out" / "dense.json").stat().st_mtime_ns > dense
    assert "finished before" in compare(**options).out and len(pruned) == 2


def test_changed_corpora_run_again(
    compare: Cli, pruned: list[tuple[str, float, bool]], corpus_file: Path, tmp_path: Path
) -> None:
    corpus = tmp_path / "corpus.txt"
    options = {"methods": ("flap+none",), "ratios": ("0.8",)}
    for count, text in enumerate((corpus_file.read_text(), corpus_file.read_text().replace("child", "adult")), start=1):
        corpus.write_text(text)
        assert compare("--dataset", corpus, **options).code == 0
        assert len(pruned) == count


def test_same_perplexity_as_export_and_evaluate(
    compare: Cli, cli: Cli, model_folder: Path, corpus_file: Path, tmp_path: Path
) -> None:
    assert compare("--dtype", "bfloat16", methods=("flap",), ratios=("0.5",)).code == 0
    result = json.loads((tmp_path / "out" / "comparison.json").read_text())
    data = ("--dataset", corpus_file, "--dataset-split")
    quick = ("--num-samples", 4, "--seq-len", 24, "--method", "flap", "--keep-ratio", 0.5, "--dtype", "bfloat16")
    assert cli("export", "-m", model_folder, *quick, *data, "[:90%]", tmp_path / "pruned").code == 0
    windows = ("--seq-len", 32, "--num-samples", 4, "--dtype", "bfloat16", "--json", tmp_path / "evaluated.json")
    models = ("-m", tmp_path / "pruned", "--dense", model_folder)
    assert cli("evaluate", *models, *data, "[90%:]", *windows).code == 0
    dense, flap = json.loads((tmp_path / "evaluated.json").read_text())["models"]
    assert result["dense"]["perplexity"]["end"] == dense["perplexity"]
    assert result["cells"][0]["perplexity"]["end"] == flap["perplexity"]


def test_recipes_patterns_and_compensations(compare: Cli, tmp_path: Path) -> None:
    methods = ("default+none", "statistical:2:4", "magnitude+scales")
    outcome = compare(methods=methods, ratios=("0.5",))
    assert outcome.code == 0, outcome.error_lines
    learnt, sparse, scaled = json.loads((tmp_path / "out" / "comparison.json").read_text())["cells"]
    assert learnt["compensation"] == [] and learnt["choice"]
    assert sparse["recipe"]["pattern"] == "2:4" and sparse["kept"]["prunable"] == 0.5
    assert sparse["weight_bytes"]["pruned"] == sparse["weight_bytes"]["dense"]
    assert scaled["recipe"]["method"] == "magnitude" and scaled["compensation"] == ["scales"]


def test_a_failed_cell_stops_no_other(compare: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    prune = GRASPPruner.prune

    def fails(self: GRASPPruner, *arguments: Any, **options: Any) -> Any:
        if self.config.method == "random" and self.config.keep_ratio == 0.8:
            raise GraspruneError("the loss is not finite")
        return prune(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(GRASPPruner, "prune", fails)
        outcome = compare(methods=("random", "magnitude"))
    assert outcome.code == 2 and len(outcome.error_lines) == 1
    assert "1 of 4 cells failed: random at 0.8 (the loss is not finite)" in outcome.error_lines[0]
    cells = json.loads((tmp_path / "out" / "comparison.json").read_text())["cells"]
    assert [cell.get("error") for cell in cells] == ["the loss is not finite", None, None, None]
    assert "failed: the loss is not finite" in (tmp_path / "out" / "comparison.md").read_text()
    assert compare(methods=("random", "magnitude")).code == 0  # the next run tries it again


def test_plots(cli: Cli, model_folder: Path, corpus_file: Path, tmp_path: Path) -> None:
    image = pytest.importorskip("matplotlib.image")
    options = ("--methods", "random", "--eval-seq-len", 32, "--eval-samples", 2, "--keep-ratios", "0.8", "0.5")
    corpora = ("--evaluate", f"held out={corpus_file}[90%:]", "--evaluate", f"all={corpus_file}")
    out = tmp_path / "out"
    # OUTPUT stands straight after options that take many values.
    assert cli("compare", "-m", model_folder, *corpora, *options, out).code == 0
    names = {f"perplexity-{name}.{kind}" for name in ("held-out", "all") for kind in ("png", "svg")}
    assert names <= {file.name for file in out.iterdir()}
    assert image.imread(out / "perplexity-all.png").ndim == 3


def test_output_after_each_list(cli: Cli, model_folder: Path, corpus_file: Path, tmp_path: Path) -> None:
    model, corpus = ("-m", model_folder), ("--evaluate", f"end={corpus_file}[90%:]")
    methods, ratios = ("--methods", "random"), ("--keep-ratios", "0.8")
    quick = ("--eval-seq-len", 32, "--eval-samples", 1, "--no-plot")
    for number, lists in enumerate(((methods, ratios, corpus), (corpus, ratios, methods), (corpus, methods, ratios))):
        out = tmp_path / str(number)
        outcome = cli("compare", *model, *quick, *(word for words in lists for word in words), out)
        assert outcome.code == 0, outcome.error_lines
        assert (out / "comparison.md").is_file()
        outcome = cli("compare", *model, *quick, *(word for words in lists for word in words))
        assert outcome.code == 2
        assert outcome.error_lines[-1].endswith("the following arguments are required: OUTPUT")


def test_missing_matplotlib_is_told_before_any_work(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, model_folder: Path, tmp_path: Path
) -> None:
    for module in ("optimum_grasprune.comparison.plots", "optimum_grasprune.report.style"):
        monkeypatch.delitem(sys.modules, module, raising=False)
        monkeypatch.delattr(module, raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    outcome = cli("compare", "-m", model_folder, "--keep-ratios", "0.8", "--methods", "random", tmp_path / "out")
    assert outcome.code == 2 and len(outcome.error_lines) == 1
    assert 'pip install "optimum-grasprune[plot]", or give --no-plot' in outcome.error_lines[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--methods", "magic"), "--methods magic: no such recipe or method; there are the recipes "),
        (("--methods", "flap@seed=1"), "--methods flap@seed=1: seed is the same for the whole comparison"),
        (("--methods", "flap:2:4"), "--methods flap:2:4: flap supports only units"),
        (("--methods", "flap+glue"), "--methods flap+glue: input should be 'auto', 'none'"),
        (("--keep-ratios", "1.2"), "--keep-ratios 1.2: input should be less than or equal to 1"),
        (("--keep-ratios", "0.02"), "--keep-ratios 0.02: too small for at least 1 FFN channels a layer"),
        (("--evaluate", "corpus.txt"), "--evaluate corpus.txt: should look like NAME=PATH"),
        (("--evaluate", "x=/nowhere.txt"), "--evaluate x=/nowhere.txt: no such file"),
        (("--dataset", "/nowhere.txt"), "--dataset /nowhere.txt: no such file"),
        (("--eval-seq-len", "1"), "--eval-seq-len 1: input should be greater than or equal to 2"),
        (("--eval-seq-len", "129"), "--eval-seq-len 129: the model reads at most 128 tokens"),
        (("--eval-samples", "0"), "--eval-samples 0: input should be greater than or equal to 1"),
        (("--seq-len", "999"), "--seq-len 999: the model reads at most 128 tokens"),
        (("--epochs", "many"), "--epochs many: input should be a valid integer"),
        (("--model", "/nowhere/model"), "the model folder /nowhere/model does not exist"),
        (("--json", "/nowhere/result.json"), "--json /nowhere/result.json: cannot be written"),
    ],
)
def test_bad_input(compare: Cli, tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    outcome = compare(*options)
    assert outcome.code == 2 and len(outcome.error_lines) == 1, outcome.error_lines
    assert outcome.error_lines[0].startswith("optimum-cli grasprune compare: error: ")
    assert message in outcome.error_lines[0]
    assert not (tmp_path / "out").exists()


def test_bad_outputs(cli: Cli, model_folder: Path, corpus_file: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    options = ("--methods", "random", "--evaluate", f"end={corpus_file}", "--keep-ratios", "0.8", "--eval-seq-len", 32)
    for output, message in (
        (tmp_path, "holds something other than a comparison"),
        (tmp_path / "notes.txt", "is a file, not a folder"),
        (Path("/proc/nowhere"), "cannot be written"),
        (model_folder, "is the model that is to be pruned"),
    ):
        outcome = cli("compare", "-m", model_folder, *options, "--no-plot", output)
        assert outcome.code == 2 and len(outcome.error_lines) == 1, outcome.error_lines
        assert message in outcome.error_lines[0]
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("there", [False, True])
def test_a_refused_comparison_leaves_no_folder(
    compare: Cli, monkeypatch: pytest.MonkeyPatch, there: bool, tmp_path: Path
) -> None:
    def refuses(model: Any) -> None:
        raise GraspruneError("the model is not fit to be pruned")

    monkeypatch.setattr("optimum_grasprune.comparison.run.check_model", refuses)
    if there:
        (tmp_path / "out").mkdir()
    outcome = compare(methods=("random",), ratios=("0.8",))
    assert outcome.code == 2 and "is not fit to be pruned" in outcome.error_lines[0]
    assert (tmp_path / "out").exists() == there and not list(tmp_path.rglob("cells"))
