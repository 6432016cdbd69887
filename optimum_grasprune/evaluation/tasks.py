"""Tasks of lm-evaluation-harness: found, loaded and made into requests before any model is."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

from ..config import TaskOptions
from ..errors import GraspruneError, OptionError, first_line
from ..record import Stored
from .undisturbed import undisturbed

PAPER = ("arc_challenge", "arc_easy", "hellaswag", "piqa", "winogrande")
"""The tasks whose average the paper gives (arXiv 2604.19398)."""

_FEWSHOT_SEED = 1234
"""The harness's own, with which it draws examples."""


@dataclass(frozen=True, kw_only=True)
class AskedTask(Stored):
    """A task as it is asked. version: of the task.  chance: the share that guessing gets right, where it is known.

    requests_sha256: of all that a model is asked, prompts, examples and answers.
    """

    version: str
    documents: int
    num_fewshot: int
    chance: float | None
    requests_sha256: str


@dataclass(frozen=True, kw_only=True)
class AskedTasks(Stored):
    """All tasks of a measurement, by name, and the version of lm-eval that asks them."""

    tasks: Mapping[str, AskedTask]
    lm_eval: str


@dataclass(frozen=True)
class Row:
    """What has a figure of its own: a task, or a group that sums up its tasks.

    tasks: names of those.  weights: of each one's mean in the group's; they sum to one.
    """

    name: str
    tasks: tuple[str, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True)
class TaskSuite:
    """Tasks that are ready to be asked. manager: the harness's index.  specs: tasks and groups as it loaded them."""

    options: TaskOptions
    manager: Any
    specs: tuple[Any, ...]
    rows: tuple[Row, ...]
    asked: AskedTasks

    @property
    def tasks(self) -> dict[str, Any]:
        """All tasks by name, as the harness loaded them."""
        return {task.task_name: task for spec in self.specs for task in _tasks_in(spec)}


def read_tasks(options: TaskOptions, model: str | None = None) -> TaskSuite | None:
    """The tasks that the options name, with their data; None where they name none.

    model: folder or Hub name of the first one that is asked. Tasks whose questions have so many tokens, as RULER's,
    get it as the harness gives it to them: as their metadata `pretrained`, whose tokenizer counts.

    Raises OptionError, one line for what no such task is, or cannot be loaded, or is of no use without tasks.
    """
    if options.tasks is None:
        if given := sorted(options.model_fields_set - {"tasks"}):
            raise OptionError(given[0], getattr(options, given[0]), "is of use only with --tasks")
        return None
    check_installed(options.tasks)
    for option in ("include_path", "task_data"):
        folder = getattr(options, option)
        if folder is not None and not os.path.isdir(folder):
            raise OptionError(option, folder, "no such folder")
    with undisturbed():
        manager, specs = _loaded(options, model)
        tasks = {task.task_name: task for spec in specs for task in _tasks_in(spec)}
        asked = {name: _asked(task, options) for name, task in tasks.items()}
    rows = tuple(row for spec in specs for row in _rows(spec, asked))
    return TaskSuite(options, manager, tuple(specs), rows, AskedTasks(tasks=asked, lm_eval=version("lm-eval")))


def check_installed(tasks: str) -> None:
    """Raise OptionError where the harness, or what its model class needs, is not installed."""
    try:
        import accelerate  # noqa: F401
        import lm_eval  # noqa: F401
    except ModuleNotFoundError:
        raise OptionError(
            "tasks", tasks, 'needs lm-evaluation-harness: pip install "optimum-grasprune[eval]"'
        ) from None


def _loaded(options: TaskOptions, model: str | None) -> tuple[Any, list[Any]]:
    """The index, and tasks and groups in the order in which they are named."""
    names = [name.strip() for name in (options.tasks or "").split(",") if name.strip()]
    names = [task for name in names for task in (PAPER if name == "paper" else [name])]
    if not names:
        raise OptionError("tasks", options.tasks, "should be names with commas between them")
    manager = _manager(names, options, model)
    specs: list[Any] = []
    seen: set[str] = set()
    for name in (found for asked in names for found in _matching(asked, manager)):
        for spec in _load(name, manager):
            for task in _tasks_in(spec):
                _check_task(name, task, seen)
            specs.append(spec)
    return manager, specs


def _manager(names: Sequence[str], options: TaskOptions, model: str | None) -> Any:
    """An index of task files. The harness has thousands, which takes a minute: those of the named tasks first."""
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks import __file__ as home

    own = [Path(options.include_path)] if options.include_path else []
    given = {"task_data": options.task_data, "pretrained": model}
    metadata = {name: value for name, value in given.items() if value} or None
    near = _namesakes(names, Path(home).parent)
    few = TaskManager(include_path=[*near, *own], include_defaults=False, metadata=metadata)
    if all(_is_whole(name, few, own) for name in names):
        return few
    return TaskManager(include_path=own or None, metadata=metadata)


def _namesakes(names: Sequence[str], home: Path) -> list[Path]:
    """Folders called like a task, or like what its name begins with: arc_easy, and arc."""
    words = [name.split("_") for name in names if re.fullmatch(r"\w+", name)]
    called = {home / "_".join(parts[:count]) for parts in words for count in range(1, len(parts) + 1)}
    return sorted(filter(os.path.isdir, called))


def _is_whole(name: str, manager: Any, own: Sequence[Path]) -> bool:
    """Whether an index of a few folders has of a name all that there is: groups and tags reach into other folders."""
    from lm_eval.tasks._index import Kind

    entry = manager.task_index.get(name)
    if entry is None:
        return _is_file(name)
    if entry.kind is Kind.TAG:
        files = [manager.task_index[task].yaml_path for task in entry.tags]
        return all(any(folder.resolve() in file.parents for folder in own) for file in files)
    return entry.kind in (Kind.TASK, Kind.PY_TASK)


def _is_file(name: str) -> bool:
    return name.endswith(".yaml") and os.path.isfile(name)


def _matching(name: str, manager: Any) -> list[str]:
    if name in manager.task_index or _is_file(name):
        return [name]
    if found := [task for task in manager.match_tasks([name]) if task in manager.all_subtasks] if "*" in name else []:
        return found
    near = get_close_matches(name, manager.all_tasks, n=3)
    hint = f"; there are {', '.join(near)}" if near else ""
    raise OptionError("tasks", name, f"no such task or group of lm-evaluation-harness{hint}")


def _load(name: str, manager: Any) -> list[Any]:
    try:
        found = manager.load([name])
    except Exception as error:  # of the Hub, of datasets, of Python code that a task file names
        raise OptionError("tasks", name, f"cannot be loaded: {_cause(error)}") from None
    group = found.get("groups", {}).get(name)
    return list(found["tasks"].values()) if group is None else [group]


def _check_task(name: str, task: Any, seen: set[str]) -> None:
    """Raise OptionError for a task that is there already, or that is of no use here; else it is among the seen ones."""
    if task.task_name in seen:
        raise OptionError("tasks", name, f"asks {task.task_name} a second time")
    if getattr(task, "UNSAFE_CODE", False):
        raise OptionError("tasks", name, f"{task.task_name} runs code that models write, which is not done here")
    if getattr(task, "MULTIMODAL", False):
        raise OptionError("tasks", name, f"{task.task_name} asks about more than text")
    seen.add(task.task_name)


def _tasks_in(spec: Any) -> list[Any]:
    from lm_eval.api.group import Group

    return spec.get_all_tasks() if isinstance(spec, Group) else [spec]


def _asked(task: Any, options: TaskOptions) -> AskedTask:
    """Make the requests of a task, as the harness will, and say what they are."""
    from lm_eval.evaluator_utils import get_sample_size

    own = task.get_config("num_fewshot")
    if own is None or (options.num_fewshot is not None and own != 0):  # the harness leaves a task its 0
        task.set_config(key="num_fewshot", value=options.num_fewshot or 0)
    task.set_fewshot_seed(seed=_FEWSHOT_SEED)
    try:
        task.build_all_requests(limit=get_sample_size(task, options.limit))
        chance = chance_level(task)
    except Exception as error:  # of templates and functions in task files, and of too few examples
        if options.num_fewshot:
            reason = f"the task {task.task_name} has no such examples: {_cause(error)}"
            raise OptionError("num_fewshot", options.num_fewshot, reason) from None
        raise OptionError("tasks", task.task_name, f"cannot be asked: {_cause(error)}") from None
    return AskedTask(
        version=str(task.VERSION),
        documents=len({instance.doc_id for instance in task.instances}),
        num_fewshot=task.get_config("num_fewshot") or 0,
        chance=chance,
        requests_sha256=_digest(task),
    )


def chance_level(task: Any) -> float | None:
    """What guessing gets right of a task whose requests are made: the mean of 1 ÷ choices over its documents.

    Nothing where the answer is any text, as in LAMBADA. None where several of the choices may be right.
    """
    if task.OUTPUT_TYPE != "multiple_choice":
        return 0.0
    if getattr(task, "multiple_target", 0):
        return None
    documents = {instance.doc_id: instance.doc for instance in task.instances}
    return fmean(1 / len(task.doc_to_choice(document)) for document in documents.values())


def _digest(task: Any) -> str:
    digest = hashlib.sha256()
    for instance in task.instances:
        digest.update(json.dumps([instance.request_type, *instance.args], default=str, ensure_ascii=False).encode())
    return digest.hexdigest()


def _rows(spec: Any, asked: Mapping[str, AskedTask]) -> Iterator[Row]:
    """A row for a task, one for a group that sums its tasks up, and those of its members for one that does not."""
    from lm_eval.api.group import Group

    if not isinstance(spec, Group):
        yield Row(spec.task_name, (spec.task_name,), (1.0,))
    elif spec.has_aggregation:
        names = tuple(task.task_name for task in spec.get_all_tasks())
        by_size = spec.aggregate_metric_list[0].weight_by_size
        sizes = [asked[name].documents if by_size else 1 for name in names]
        yield Row(spec.name, names, tuple(size / sum(sizes) for size in sizes))
    else:
        for child in spec:
            yield from _rows(child, asked)


def _cause(error: BaseException) -> str:
    """What an error was caused by at last: wrappers say no more than that there was one."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error) if isinstance(error, GraspruneError | ValueError | OSError) else _named(error)


def _named(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
