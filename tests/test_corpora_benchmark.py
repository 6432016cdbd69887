"""`benchmarks/corpora.py`, on the random model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from optimum_grasprune.evaluation.scores import TaskScore
from tests.conftest import script
from tests.tiny_tasks import TASK_FILES, write_task_data


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    return script("benchmarks/corpora.py")


def test_ranks_are_averaged_over_texts_and_shared_by_equal_values(benchmark: ModuleType) -> None:
    rows = {"a": {"x": 1.0, "y": 3.0}, "b": {"x": 2.0, "y": 1.0}, "c": {"x": 2.0, "y": 2.0}}
    assert benchmark.mean_ranks(rows) == {"a": 2.0, "b": 1.75, "c": 2.25}  # (1, 3), (2½, 1), (2½, 2)


def test_the_table_has_means_over_seeds_and_the_best_in_bold(benchmark: ModuleType) -> None:
    rows = {"a": {"x": [1.0, 2.0], "y": [0.5, 0.5]}, "a+b": {"x": [1.0, 1.0], "y": [1.0, 0.0]}}
    assert benchmark.markdown(rows).splitlines() == [
        "| calibrated on | x | y | mean | mean rank |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| a | +1.500 | **+0.500** | +1.000 | 1.75 |",
        "| a+b | **+1.000** | **+0.500** | **+0.750** | **1.25** |",
    ]


def test_the_table_has_accuracy_and_what_is_kept_above_chance_beside_the_dense_model(benchmark: ModuleType) -> None:
    rows = {"a": {"x": [1.0, 2.0]}, "b": {"x": [1.0, 1.0]}}

    def scores(*values: float) -> list[TaskScore]:
        return [TaskScore(metric="mean", value=v, standard_error=None, documents=9, chance=0.2) for v in values]

    dense = ("mean accuracy", scores(0.6)[0])
    assert benchmark.markdown(rows, dense, {"a": scores(0.3, 0.5), "b": scores(0.3, 0.3)}).splitlines() == [
        "| calibrated on | x | mean | mean rank | mean accuracy | above chance kept |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| dense | 0 | 0 |  | 60.0 | 100.0% |",
        "| a | +1.500 | +1.500 | 2.00 | **40.0** | 50.0% |",
        "| b | **+1.000** | **+1.000** | **1.00** | 30.0 | 25.0% |",
    ]


def test_what_is_calibrated_on(benchmark: ModuleType) -> None:
    texts, corpora = benchmark.texts_of, ["a=a.txt", "b=builtin", "c=sampled"]
    assert texts(corpora[:1], None) == {"a": "a.txt"}
    assert texts(corpora, None)["a+b+c"] == "a.txt,builtin,sampled"
    mixed = texts(corpora, ["c+b"])
    assert list(mixed) == ["a", "b", "c", "c+b"] and mixed["c+b"] == "sampled,builtin"
    assert list(texts(corpora, [])) == ["a", "b", "c"]
    for wrong, mixtures in ((["a.txt"], None), (["a=1", "a=2"], None), (corpora, ["a"]), (corpora, ["a+d"])):
        with pytest.raises(ValueError, match="--corpora a|--mixtures a"):
            texts(wrong, mixtures)


def test_every_text_is_calibrated_on_and_measured_on(
    benchmark: ModuleType,
    model_folder: Path,
    corpus_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    command = ["corpora", str(model_folder), "--output", str(out), "--corpora", f"numbers={corpus_file}"]
    command += [f"code={__file__}", "--method", "wanda_sp@num_samples=4,seq_len=24", "--keep-ratios", "0.5"]
    command += ["--eval-seq-len", "32", "--eval-samples", "4", "--evaluate", f"other={benchmark.__file__}"]
    monkeypatch.setattr(sys, "argv", command)
    benchmark.main()
    table = json.loads((out / "corpora.json").read_text())
    rows = table["excess_loss"]["0.5"]
    assert list(rows) == ["numbers", "code", "numbers+code"] == list(table["mean_rank"]["0.5"])
    assert all(list(row) == ["numbers", "code", "other"] for row in rows.values())
    assert len({row["other"][0] for row in rows.values()}) == 3  # each was calibrated on another text
    stored = json.loads((out / "numbers+code-0" / "comparison.json").read_text())
    assert (
        stored["options"]["dataset"] == f"{corpus_file},{__file__}" and stored["options"]["dataset_split"] == "[:90%]"
    )
    assert stored["corpora"]["code"]["split"] == "[90%:]" and stored["corpora"]["other"]["split"] is None
    page = (out / "corpora.md").read_text()
    assert "- code, `test_corpora_benchmark.py`: `[:90%]` calibrated on" in page and str(tmp_path.parent) not in page
    assert "## ρ = 0.5" in page and "| numbers+code |" in page and page in capsys.readouterr().out
    benchmark.main()
    printed = capsys.readouterr().out
    assert printed.count("finished before") == 6 and "running" not in printed and "dense: measuring" not in printed
    monkeypatch.setattr(sys, "argv", [*command, "--method", "quick"])
    with pytest.raises(SystemExit, match="2"):
        benchmark.main()
    assert "holds the table of method wanda_sp@num_samples=4,seq_len=24, not quick" in capsys.readouterr().err


def test_tasks_are_asked_as_compare_asks_them(
    benchmark: ModuleType,
    model_folder: Path,
    corpus_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By two processes, of which the first does one of the texts."""
    pytest.importorskip("lm_eval")
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # which takes seconds
    out, data = tmp_path / "out", write_task_data(tmp_path / "data")
    command = ["corpora", str(model_folder), "--output", str(out), "--corpora", f"numbers={corpus_file}"]
    command += [f"code={__file__}", "--mixtures", "--method", "wanda_sp@num_samples=4,seq_len=24"]
    command += ["--keep-ratios", "0.5", "--eval-seq-len", "32", "--eval-samples", "4", "--dtype", "bfloat16"]
    asked = ["--tasks", "local_piqa,local_winogrande", "--include-path", str(TASK_FILES), "--task-data", str(data)]

    def run(*options: str) -> str:
        monkeypatch.setattr(sys, "argv", [*command, *options])
        benchmark.main()
        return capsys.readouterr().out

    assert "code, seed 0: dense: measuring" in run(*asked, "--limit", "2", "--only", "code")
    assert not (out / "corpora.md").exists() and not (out / "numbers-0").exists()
    printed = run(*asked, "--limit", "2")
    assert "dense: measuring" not in printed and "code, seed 0: cell 1 of 1" in printed
    tasks = json.loads((out / "corpora.json").read_text())["tasks"]
    assert [task["documents"] for task in tasks["tasks"].values()] == [2, 2] and tasks["figure"] == "mean accuracy"
    for name in ("numbers", "code"):
        stored = json.loads((out / f"{name}-0" / "comparison.json").read_text())
        (cell,) = stored["cells"]
        assert stored["dense"]["dtype"] == cell["dtype"] == "bfloat16"
        assert tasks["dense"] == stored["dense"]["tasks"]["scores"]["mean"]["value"]
        kept = cell["tasks"]["against_dense"]["mean"]["above_chance_kept"]
        score = cell["tasks"]["scores"]["mean"]["value"]
        assert tasks["pruned"]["0.5"][name] == {"score": [score], "above_chance_kept": [kept]}
    page = (out / "corpora.md").read_text()
    assert "*Tasks*: 4 questions" in page and f"| dense | 0 | 0 | 0 |  | {100 * tasks['dense']:.1f} | 100.0% |" in page
    for options, line in (
        (["--limit", "2"], "limit=2.0: is of use only with --tasks"),
        (["--only", "chat"], "--only chat: should be of numbers, code"),
    ):
        with pytest.raises(SystemExit, match="2"):
            run(*options)
        assert line in capsys.readouterr().err
