"""Tasks are found, loaded and asked as the harness does it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from optimum_grasprune.config import TaskOptions
from optimum_grasprune.errors import OptionError
from optimum_grasprune.evaluation.tasks import TaskSuite, _namesakes, chance_level, read_tasks
from tests.conftest import make_model, make_tokenizer
from tests.tiny_tasks import FILES, HUB, PAPER, TASK_FILES, write_task_data

lm_eval = pytest.importorskip("lm_eval")


@pytest.fixture(autouse=True)
def no_description_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which the harness puts into its results, and takes seconds for."""
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_task_data(tmp_path_factory.mktemp("tasks") / "data")


def suite(names: str, data: Path, **options: Any) -> TaskSuite:
    found = read_tasks(TaskOptions(tasks=names, include_path=str(TASK_FILES), task_data=str(data), **options))
    assert found is not None
    return found


def harness_task(name: str) -> Any:
    """A task by the harness's own file, its data set replaced by rows of the same form."""
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    folder = Path(lm_eval.__file__).parent / "tasks"
    files = {"boolq": "super_glue/boolq/default.yaml", "winogrande": "winogrande/default.yaml"}
    files |= {task: f"arc/{task}.yaml" for task in ("arc_easy", "arc_challenge")} | {
        "lambada_openai": "lambada/lambada_openai.yaml"
    }
    config = load_yaml(folder / files.get(name, f"{name}/{name}.yaml"))
    rows = Dataset.from_list(HUB[name])
    del config["dataset_path"]
    config.pop("tag", None)
    splits = dict.fromkeys(("train", "validation", "test"), rows)
    return ConfigurableTask(config={**config, "custom_dataset": lambda **_: splits, "num_fewshot": 0})


@pytest.fixture(scope="module")
def both(data: Path) -> tuple[TaskSuite, dict[str, Any]]:
    """Our files on local data, and the harness's own on the hub's form of it."""
    ours = suite(",".join(f"local_{name}" for name in FILES), data)
    theirs = {name: harness_task(name) for name in FILES}
    for task in theirs.values():
        task.build_all_requests()
    return ours, theirs


def requests(task: Any) -> list[Any]:
    return [(instance.request_type, instance.args, instance.doc_id) for instance in task.instances]


def test_local_tasks_ask_what_the_harness_asks(both: tuple[TaskSuite, dict[str, Any]]) -> None:
    ours, theirs = both
    for name, task in theirs.items():
        local = ours.tasks[f"local_{name}"]
        assert requests(local) == requests(task), name
        assert (local.VERSION, local.aggregation().keys()) == (task.VERSION, task.aggregation().keys()), name
        assert local.higher_is_better() == task.higher_is_better(), name
        answers = [(-1.0 - instance.idx, False) for instance in task.instances if instance.doc_id == 0]
        own, hub = (next(iter(each.eval_docs)) for each in (local, task))
        assert local.process_results(own, answers) == task.process_results(hub, answers), name
        assert chance_level(local) == chance_level(task), name


def test_local_tasks_give_the_harness_own_numbers(both: tuple[TaskSuite, dict[str, Any]], data: Path) -> None:
    from optimum_grasprune.evaluation.harness import ask_model
    from optimum_grasprune.evaluation.hf_backend import LoadedModel
    from optimum_grasprune.evaluation.undisturbed import undisturbed

    names = [name for name in FILES if name != "lambada_openai"]  # whose perplexity is bootstrapped for a while
    model, tokenizer = make_model(), make_tokenizer()
    with undisturbed():
        tasks, manager = [both[1][name] for name in names], both[0].manager
        own = lm_eval.simple_evaluate(LoadedModel(model, tokenizer, 1), tasks=tasks, task_manager=manager)
    ours = ask_model(model, tokenizer, suite(",".join(f"local_{name}" for name in names), data), "tiny")
    for name in names:
        metrics = {key: value for key, value in own["results"][name].items() if "," in key}
        found = ours.results["results"][f"local_{name}"]
        assert {key: value for key, value in found.items() if "," in key} == metrics, name
        assert metrics and all(isinstance(value, float) for value in metrics.values())


def test_chance_is_by_the_choices_of_each_document(data: Path) -> None:
    asked = suite("local_paper,local_lambada_openai,local_boolq", data).asked.tasks
    assert {name: task.chance for name, task in asked.items()} == {
        "local_arc_challenge": pytest.approx((1 / 4 + 1 / 3 + 1 / 4) / 3),
        "local_arc_easy": pytest.approx((1 / 4 + 1 / 3 + 1 / 4) / 3),
        "local_hellaswag": 0.25,
        "local_piqa": 0.5,
        "local_winogrande": 0.5,
        "local_lambada_openai": 0.0,
        "local_boolq": 0.5,
    }


def test_a_tag_is_its_tasks(data: Path) -> None:
    found = suite("local_paper", data)
    assert [row.name for row in found.rows] == [f"local_{name}" for name in PAPER]
    assert all(row.tasks == (row.name,) and row.weights == (1.0,) for row in found.rows)


@pytest.mark.parametrize(("limit", "documents"), [(2, 2), (0.5, 2), (0.1, 1), (99, 3)])
def test_limit(data: Path, limit: float, documents: int) -> None:
    assert suite("local_piqa", data, limit=limit).asked.tasks["local_piqa"].documents == documents


def test_requests_are_told_apart(data: Path, tmp_path: Path) -> None:
    """By all that a model is asked: data, examples, how many."""

    def digest(folder: Path, **options: Any) -> str:
        return suite("local_piqa", folder, **options).asked.tasks["local_piqa"].requests_sha256

    changed = write_task_data(tmp_path / "data")
    lines = (changed / "piqa_validation.jsonl").read_text().splitlines()
    (changed / "piqa_validation.jsonl").write_text("\n".join(lines).replace("jar", "box"))
    digests = [digest(data), digest(data, limit=2), digest(data, num_fewshot=1), digest(changed)]
    assert len(set(digests)) == 4 and digest(data, limit=3) == digests[0]


def test_examples_leave_out_the_question_itself(data: Path) -> None:
    task = suite("local_piqa", data, num_fewshot=2).tasks["local_piqa"]
    for instance in task.instances:
        context, _ = instance.args
        assert context.count("Question:") == 3 and context.count(instance.doc["goal"]) == 1


def test_a_group_of_ones_own(data: Path, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    for file in TASK_FILES.iterdir():
        if file.is_file():
            (tmp_path / "own" / file.name).write_bytes(file.read_bytes())
    group = {"group": "two", "task": ["local_piqa", "local_boolq"]}
    for name, weighted in (("sized", True), ("equal", False)):
        summed = [{"metric": "acc", "aggregation": "mean", "weight_by_size": weighted}]
        content = {**group, "group": name, "aggregate_metric_list": summed}
        (tmp_path / "own" / f"{name}.yaml").write_text(json.dumps(content))
    (tmp_path / "own" / "two.yaml").write_text(json.dumps(group))
    from lm_eval.tasks import TaskManager

    from optimum_grasprune.evaluation.tasks import _rows

    manager = TaskManager(include_path=str(tmp_path / "own"), include_defaults=False, metadata={"task_data": str(data)})
    asked = suite("local_piqa,local_boolq", data).asked.tasks
    found = {}
    for name in ("two", "sized", "equal"):
        found[name] = [(row.name, row.weights) for row in _rows(manager.load([name])["groups"][name], asked)]
    assert found["two"] == [("local_piqa", (1.0,)), ("local_boolq", (1.0,))]
    assert found["sized"] == [("sized", (0.6, 0.4))] and found["equal"] == [("equal", (0.5, 0.5))]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            {"tasks": "local_piqa"},
            "--tasks local_piqa: cannot be loaded: the folder of piqa_validation.jsonl is missing: ",
        ),
        ({"tasks": "local_piqa", "task_data": "/nowhere"}, "--task-data /nowhere: no such folder"),
        ({"tasks": "local_piqa", "include_path": "/nowhere"}, "--include-path /nowhere: no such folder"),
        ({"tasks": " , "}, "--tasks  , : should be names with commas between them"),
        ({"limit": "3"}, "--limit 3.0: is of use only with --tasks"),
    ],
)
def test_bad_tasks(options: dict[str, Any], line: str) -> None:
    with pytest.raises(OptionError) as caught:
        read_tasks(TaskOptions(**{"include_path": str(TASK_FILES), **options} if "tasks" in options else options))
    assert caught.value.flag_line.startswith(line)


@pytest.mark.parametrize(
    ("names", "options", "line"),
    [
        ("local_piqa,local_piqa", {}, "--tasks local_piqa: asks local_piqa a second time"),
        ("local_piqa", {"num_fewshot": 3}, "--num-fewshot 3: the task local_piqa has no such examples: "),
    ],
)
def test_what_cannot_be_asked(data: Path, names: str, options: dict[str, Any], line: str) -> None:
    with pytest.raises(OptionError) as caught:
        suite(names, data, **options)
    assert caught.value.flag_line.startswith(line)


def test_damaged_data_is_named(data: Path, tmp_path: Path) -> None:
    broken = write_task_data(tmp_path / "data")
    for content, reason in (
        ("{", "Expecting property name"),
        ("", "is empty"),
        ('{"goal": "x"}', "cannot be loaded: "),
    ):
        (broken / "piqa_validation.jsonl").write_text(content)
        with pytest.raises(OptionError, match=reason) as caught:
            suite("local_piqa", broken)
        assert caught.value.flag_line.startswith("--tasks local_piqa: cannot be loaded: ")
    (broken / "piqa_validation.jsonl").unlink()
    with pytest.raises(OptionError, match="No such file"):
        suite("local_piqa", broken)


@pytest.mark.parametrize("limit", ["0", "-1", "2.5", "nan", "many"])
def test_bad_limits(limit: str) -> None:
    with pytest.raises(OptionError) as caught:
        TaskOptions(tasks="paper", limit=limit)
    assert caught.value.option == "limit"


def test_git_is_not_asked_about_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from lm_eval import evaluator

    from optimum_grasprune.evaluation.undisturbed import undisturbed

    monkeypatch.chdir(tmp_path)
    own = evaluator.get_git_commit_hash
    with undisturbed():
        assert evaluator.get_git_commit_hash() is None
    assert capfd.readouterr().err == "" and evaluator.get_git_commit_hash is own


def test_a_name_that_is_too_long_for_any_folder() -> None:
    home = Path(lm_eval.tasks.__file__).parent
    assert _namesakes(["a" * 5000, "piqa"], home) == [home / "piqa"]


def test_what_is_written_of_a_task_says_no_address() -> None:
    from optimum_grasprune.evaluation.harness import as_json

    task = {"doc_to_text": str(harness_task), "loss": math.nan, "device": torch.device("cpu")}
    written = as_json({"configs": {"a": task}})
    of_task = written["configs"]["a"]  # type: ignore[index, call-overload]
    assert of_task == {"doc_to_text": "<function harness_task>", "loss": None, "device": "cpu"}
