"""`evaluate --tasks` and `compare --tasks`, through the command line."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from optimum_grasprune import GRASPConfig, GRASPPruner
from optimum_grasprune.evaluation.report import EvaluationReport
from tests.commands.conftest import Outcome
from tests.conftest import make_model, make_tokenizer
from tests.tiny_tasks import PAPER, TASK_FILES, write_task_data

Cli = Callable[..., Outcome]
lm_eval = pytest.importorskip("lm_eval")
LOCAL = [f"local_{name}" for name in PAPER]


@pytest.fixture(autouse=True)
def no_description_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which the harness puts into its results, and takes seconds for."""
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_task_data(tmp_path_factory.mktemp("tasks") / "data")


@pytest.fixture(scope="module")
def pruned_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "pruned"
    pruner = GRASPPruner(GRASPConfig(method="magnitude", keep_ratio=0.5, compensation="none"))
    pruner.prune_model(make_model(), make_tokenizer())
    pruner.save(folder)
    return folder


@pytest.fixture
def asked(data: Path) -> tuple[object, ...]:
    return ("--include-path", TASK_FILES, "--task-data", data)


def test_dense_beside_pruned(
    cli: Cli, pruned_folder: Path, model_folder: Path, corpus_file: Path, asked: tuple[object, ...], tmp_path: Path
) -> None:
    result = tmp_path / "result.json"
    corpora = ("--ppl", f"end={corpus_file}[90%:]", f"all={corpus_file}", "--seq-len", 32, "--num-samples", 2)
    models = ("-m", pruned_folder, "--dense", model_folder)
    outcome = cli("evaluate", *models, "--tasks", "local_paper", *asked, *corpora, "--json", result)
    assert outcome.code == 0, outcome.error_lines
    assert outcome.error_lines == []
    assert "recovery" in outcome.out and "local_winogrande (acc)" in outcome.out and "perplexity on end" in outcome.out

    report = EvaluationReport.read(result)
    dense, pruned = report.models
    assert list(dense.tasks) == [*LOCAL, "mean"] == list(pruned.against_dense or ())
    assert report.tasks is not None and list(report.tasks.tasks) == LOCAL
    assert dense.tasks["mean"].value == pytest.approx(sum(dense.tasks[name].value for name in LOCAL) / 5)
    assert dense.against_dense is None and pruned.parameters < dense.parameters
    assert [value.windows for value in pruned.perplexity.values()] == [2, 2]
    for model in report.models:
        harness: Any = model.harness
        for name in LOCAL:
            score = model.tasks[name]
            assert score.value == harness["results"][name][f"{score.metric},none"]
            assert score.metric == ("acc" if name == "local_winogrande" else "acc_norm") and score.documents == 3
        assert harness["config"]["model_args"] == {"pretrained": model.model} and "samples" not in harness
    for name, against in (pruned.against_dense or {}).items():
        assert against.difference is not None and not against.difference.beyond_noise
        gap = pruned.tasks[name].value - dense.tasks[name].value
        assert against.difference.difference == pytest.approx(gap)


def test_one_corpus_beside_tasks_and_models_side_by_side(
    cli: Cli, pruned_folder: Path, model_folder: Path, corpus_file: Path, asked: tuple[object, ...], tmp_path: Path
) -> None:
    data = ("--dataset", corpus_file, "--dataset-split", "[90%:]", "--seq-len", 32, "--num-samples", 2)
    models = ("-m", model_folder, pruned_folder)
    both = ("--tasks", "local_piqa", *asked, "--limit", 2, "--dtype", "float32", "--task-batch-size", 2)
    outcome = cli("evaluate", *models, *both, *data, "--json", tmp_path / "both.json")
    assert outcome.code == 0 and "perplexity on corpus.txt" in outcome.out, outcome.error_lines
    assert cli("evaluate", *models, *data, "--json", tmp_path / "alone.json").code == 0
    both_models = json.loads((tmp_path / "both.json").read_text())["models"]
    alone = json.loads((tmp_path / "alone.json").read_text())
    assert alone["format"] == 1 and alone["corpus"]["source"] == str(corpus_file)
    for one, other in zip(both_models, alone["models"], strict=True):
        assert one["perplexity"]["corpus.txt"]["perplexity"] == other["perplexity"]
        assert one["tasks"]["local_piqa"]["documents"] == 2 and "mean" not in one["tasks"]
        assert one["parameters"] == other["parameters"]


@pytest.mark.usefixtures("remote_code")
def test_the_same_as_the_harness_by_itself(
    cli: Cli, pruned_folder: Path, asked: tuple[object, ...], data: Path, tmp_path: Path
) -> None:
    from lm_eval.tasks import TaskManager

    from optimum_grasprune.evaluation.undisturbed import undisturbed

    result = tmp_path / "result.json"
    ours = ("--tasks", "local_paper", *asked, "--device", "cpu", "--json", result)
    assert cli("evaluate", "-m", pruned_folder, *ours).code == 0
    with undisturbed():
        manager = TaskManager(include_path=str(TASK_FILES), include_defaults=False, metadata={"task_data": str(data)})
        arguments = f"pretrained={pruned_folder},trust_remote_code=True"
        alone = lm_eval.simple_evaluate("hf", arguments, tasks=["local_paper"], task_manager=manager, device="cpu")
    (model,) = json.loads(result.read_text())["models"]
    assert model["harness"]["results"] == json.loads(json.dumps(alone["results"]))
    assert model["harness"]["n-samples"] == alone["n-samples"]


@pytest.mark.slow
def test_the_same_as_the_harness_command(
    cli: Cli, pruned_folder: Path, asked: tuple[object, ...], data: Path, tmp_path: Path
) -> None:
    """A process that knows nothing of this package: the checkpoint brings its own code. The index takes a minute."""
    result, theirs = tmp_path / "result.json", tmp_path / "theirs"
    ours = ("--tasks", "local_paper", *asked, "--device", "cpu", "--json", result)
    assert cli("evaluate", "-m", pruned_folder, *ours).code == 0
    command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--tasks", "local_paper", "--device", "cpu"]
    command += ["--model_args", f"pretrained={pruned_folder},trust_remote_code=True"]
    command += ["--include_path", str(TASK_FILES), "--metadata", json.dumps({"task_data": str(data)})]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = subprocess.run(
        [*command, "--output_path", str(theirs)], env=environment, cwd=tmp_path, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    (file,) = theirs.rglob("results_*.json")
    alone, (model,) = json.loads(file.read_text()), json.loads(result.read_text())["models"]
    for name in LOCAL:
        found = {key: value for key, value in alone["results"][name].items() if "," in key}
        assert {key: model["harness"]["results"][name][key] for key in found} == found


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            ("--tasks", "local_pika"),
            "--tasks local_pika: no such task or group of lm-evaluation-harness; there are local_piqa",
        ),
        (("--tasks", "local_piqa", "--limit", "1.5"), "--limit 1.5: should be a whole number of documents, or a share"),
        (("--tasks", "local_piqa", "--limit", "0"), "--limit 0: input should be greater than 0"),
        (("--tasks", "local_piqa", "--backend", "tgi"), "--backend tgi: input should be 'hf' or 'vllm'"),
        (("--tasks", "local_piqa", "--model-args", "a=1"), "--model-args a=1: is of use only with --backend vllm"),
        (
            ("--tasks", "local_piqa", "--seq-len", "32"),
            "--seq-len 32: is of use only with a corpus: --ppl or --dataset",
        ),
        (("--tasks", "local_piqa", "--device", "cuda:99"), "--device cuda:99: "),
        (("--tasks", "local_piqa", "--ppl", "corpus.txt"), "--ppl corpus.txt: should look like NAME=PATH"),
        (
            ("--ppl", "x=builtin[test]", "--dataset", "sampled"),
            "--ppl x=builtin[test]: has no meaning beside --dataset",
        ),
        (("--ppl", "x=builtin[test]"), "--include-path {files}: is of use only with --tasks"),
        (("--backend", "vllm"), "--backend vllm: is of use only with --tasks"),
    ],
)
def test_refusals_before_a_model_is_loaded(
    cli: Cli,
    model_folder: Path,
    asked: tuple[object, ...],
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    line: str,
) -> None:
    from lm_eval.tasks import TaskManager

    whole = TaskManager.__init__
    # The index of all the harness's tasks takes a minute, and ours alone know no better.
    monkeypatch.setattr(
        TaskManager, "__init__", lambda self, **given: whole(self, **given | {"include_defaults": False})
    )
    monkeypatch.setattr("optimum_grasprune.evaluation.report.loaded", None)
    outcome = cli("evaluate", "-m", model_folder, *asked, *options)
    assert outcome.code == 2 and len(outcome.error_lines) == 1, outcome.error_lines
    assert outcome.error_lines[0].startswith(f"optimum-cli grasprune evaluate: error: {line.format(files=TASK_FILES)}")


@pytest.mark.parametrize("command", ["evaluate", "compare"])
def test_tasks_that_count_tokens_are_told_the_model(
    cli: Cli, model_folder: Path, pruned_folder: Path, tmp_path: Path, command: str
) -> None:
    """As RULER's are, whose questions are made for a tokenizer; the first model's, which is the dense one."""
    files = tmp_path / "files"
    files.mkdir()
    (files / "sized.py").write_text("def sized(pretrained, **_):\n    raise ValueError(f'sized for {pretrained}')\n")
    lines = ["task: sized_task", "custom_dataset: !function sized.sized", "test_split: test", "doc_to_text: a"]
    (files / "sized.yaml").write_text("\n".join([*lines, "doc_to_target: b", "output_type: loglikelihood"]) + "\n")
    options: tuple[object, ...] = ("-m", pruned_folder, "--dense", model_folder)
    if command == "compare":
        options = ("-m", model_folder, "--methods", "random", "--keep-ratios", "0.5", "--no-plot", tmp_path / "out")
    outcome = cli(command, "--tasks", "sized_task", "--include-path", files, *options)
    line = f"--tasks sized_task: cannot be loaded: sized for {model_folder}"
    assert outcome.code == 2 and outcome.error_lines == [f"optimum-cli grasprune {command}: error: {line}"]


@pytest.mark.parametrize("package", ["lm_eval", "accelerate"])
def test_missing_harness(
    cli: Cli, model_folder: Path, monkeypatch: pytest.MonkeyPatch, package: str, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    line = '--tasks paper: needs lm-evaluation-harness: pip install "optimum-grasprune[eval]"'
    compared = ("--methods", "random", "--keep-ratios", "0.5", "--no-plot", tmp_path / "out")
    for command, options in (("evaluate", ()), ("compare", compared)):
        outcome = cli(command, "-m", model_folder, "--tasks", "paper", *options)
        assert outcome.code == 2 and outcome.error_lines == [f"optimum-cli grasprune {command}: error: {line}"]
    assert not (tmp_path / "out").exists()


def test_missing_vllm(cli: Cli, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optimum_grasprune.evaluation.vllm_backend.find_spec", lambda name: None)
    outcome = cli("evaluate", "-m", model_folder, "--tasks", "paper", "--backend", "vllm")
    assert outcome.code == 2 and len(outcome.error_lines) == 1
    assert 'pip install "optimum-grasprune[vllm]", or give --backend hf' in outcome.error_lines[0]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--model-args", "two"), "--model-args two: should look like KEY=VALUE,KEY=VALUE"),
        (("--model-args", "dtype=float16"), "--model-args dtype=float16: dtype has an option of its own"),
        (("--device", "cpu"), "--device cpu: vLLM takes the device that it is built for"),
    ],
)
def test_bad_options_of_vllm(cli: Cli, model_folder: Path, options: tuple[str, ...], line: str) -> None:
    pytest.importorskip("vllm")
    outcome = cli("evaluate", "-m", model_folder, "--tasks", "paper", "--backend", "vllm", *options)
    assert outcome.code == 2 and outcome.error_lines[0].startswith(f"optimum-cli grasprune evaluate: error: {line}")


def test_results_go_nowhere_that_is_read(cli: Cli, model_folder: Path, data: Path) -> None:
    file = data / "piqa_validation.jsonl"
    before = file.read_bytes()
    options = ("--tasks", "local_piqa", "--include-path", TASK_FILES, "--task-data", data)
    outcome = cli("evaluate", "-m", model_folder, *options, "--json", file)
    assert outcome.code == 2 and "--json" in outcome.error_lines[0] and file.read_bytes() == before


def test_compare(cli: Cli, model_folder: Path, corpus_file: Path, asked: tuple[object, ...], tmp_path: Path) -> None:
    out, names = tmp_path / "out", ["local_piqa", "local_winogrande"]
    chosen = ("--methods", "random", "magnitude+none", "--keep-ratios", "0.5", "--no-plot", "--tasks", ",".join(names))
    corpora = ("--evaluate", f"end={corpus_file}[90%:]", "--eval-seq-len", 32, "--eval-samples", 2)

    def compare(*options: object) -> Outcome:
        return cli("compare", "-m", model_folder, *chosen, *corpora, *asked, *options, out)

    outcome = compare()
    assert outcome.code == 0, outcome.error_lines
    assert "cell 1 of 2, random at 0.5: perplexity end " in outcome.out and "; mean accuracy " in outcome.out
    result = json.loads((out / "comparison.json").read_text())
    assert list(result["tasks"]["tasks"]) == names
    assert {name: len(values) for name, values in result["dense"]["tasks"]["answers"].items()} == dict.fromkeys(
        names, 3
    )
    assert all(list(cell["tasks"]["scores"]) == [*names, "mean"] for cell in result["cells"])
    with (out / "comparison.csv").open() as file:
        means = [float(row["score[mean]"]) for row in list(csv.DictReader(file))[1:]]
    assert means == [cell["tasks"]["scores"]["mean"]["value"] for cell in result["cells"]]
    page = (out / "comparison.md").read_text()
    assert "| local piqa |" in page and "| above chance kept |" in page and "6 questions" in page

    (out / "cells" / "random-0.5.json").unlink()
    outcome = compare()  # beside the dense model's answers, as they were stored
    assert outcome.out.count("finished before") == 2
    assert json.loads((out / "comparison.json").read_text())["cells"][0]["tasks"] == result["cells"][0]["tasks"]
    assert "finished before" not in compare("--limit", 2).out


def test_compare_measures_what_evaluate_measures(
    cli: Cli, model_folder: Path, corpus_file: Path, asked: tuple[object, ...], tmp_path: Path
) -> None:
    tasks = ("--tasks", "local_piqa,local_arc_easy", *asked)
    chosen = ("--methods", "magnitude+none", "--keep-ratios", "0.5", "--no-plot", "--eval-seq-len", 32)
    corpora = ("--evaluate", f"end={corpus_file}[90%:]")
    assert cli("compare", "-m", model_folder, *chosen, *corpora, *tasks, tmp_path / "out").code == 0
    (cell,) = json.loads((tmp_path / "out" / "comparison.json").read_text())["cells"]
    options = ("--method", "magnitude", "--compensation", "none", "--keep-ratio", 0.5)
    assert cli("export", "-m", model_folder, *options, tmp_path / "pruned").code == 0
    models = ("-m", tmp_path / "pruned", "--dense", model_folder)
    assert cli("evaluate", *models, *tasks, "--dtype", "float32", "--json", tmp_path / "result.json").code == 0
    _, pruned = json.loads((tmp_path / "result.json").read_text())["models"]
    assert (cell["tasks"]["scores"], cell["tasks"]["against_dense"]) == (pruned["tasks"], pruned["against_dense"])
