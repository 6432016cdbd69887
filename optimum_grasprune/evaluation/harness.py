"""Models asked the tasks of lm-evaluation-harness, by its own `simple_evaluate`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import JsonValue
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .scores import MEAN, AgainstDense, Answers, TaskScore, against_dense, main_metric, mean_score
from .tasks import Row, TaskSuite
from .undisturbed import undisturbed

_ADDRESS = re.compile(r" at 0x[0-9a-f]+>")


@dataclass(frozen=True)
class Scored:
    """A model's answers. scores: by row of the suite, and the mean.  answers: of rows whose metric is a mean of them.

    results: what the harness says of it all, in its own form, without the single answers; empty where it was not kept.
    """

    scores: Mapping[str, TaskScore]
    answers: Answers
    results: Mapping[str, JsonValue] = field(default_factory=dict)


def ask_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, suite: TaskSuite, source: str) -> Scored:
    """Ask a loaded model, in the precision that it has. source: its folder or Hub name, for the results."""
    from .hf_backend import LoadedModel

    with undisturbed():
        asked = LoadedModel(model, tokenizer, suite.options.task_batch_size or 1)
    return ask(asked, suite, source, "hf")


def ask(model: Any, suite: TaskSuite, source: str, backend: str) -> Scored:
    """Ask a model of the harness. source: as in `ask_model`.  backend: the harness's name for its class."""
    from lm_eval import simple_evaluate

    with undisturbed():
        found = simple_evaluate(
            model=model,
            tasks=list(suite.specs),
            num_fewshot=suite.options.num_fewshot,
            limit=suite.options.limit,
            batch_size=suite.options.task_batch_size,
            task_manager=suite.manager,  # else it reads its thousands of task files for every model
        )
    samples = found.pop("samples")
    found["config"] |= {"model": backend, "model_args": {"pretrained": source}}
    means = {name: _means(task) for name, task in suite.tasks.items()}
    scores: dict[str, TaskScore] = {}
    answers: dict[str, tuple[float, ...]] = {}
    for row in suite.rows:
        scores[row.name] = score = _score(row, found, suite)
        if all(score.metric in means[task] for task in row.tasks):
            answers |= {task: _answers(samples[task], score) for task in row.tasks}
    mean = mean_score(scores.values())
    return Scored({**scores, **({MEAN: mean} if mean else {})}, answers, as_json(found))


def beside_dense(pruned: Scored, dense: Scored, suite: TaskSuite) -> dict[str, AgainstDense]:
    """What the scores of a pruned model are beside the dense one's, by row of the suite, and of the mean."""
    rows = {row.name: row for row in suite.rows}
    if MEAN in pruned.scores:
        rows[MEAN] = _mean_row(pruned.scores, suite)
    found = {}
    for name, row in rows.items():
        pairs = None
        if all(task in dense.answers and task in pruned.answers for task in row.tasks):
            pairs = [(dense.answers[task], pruned.answers[task]) for task in row.tasks]
        found[name] = against_dense(pruned.scores[name], dense.scores[name], pairs, row.weights)
    return found


def _mean_row(scores: Mapping[str, TaskScore], suite: TaskSuite) -> Row:
    """The average of all accuracies as a row: of every task in it, what its mean counts."""
    rows = [row for row in suite.rows if scores[row.name].is_accuracy]
    tasks = tuple(task for row in rows for task in row.tasks)
    return Row(MEAN, tasks, tuple(weight / len(rows) for row in rows for weight in row.weights))


def _means(task: Any) -> set[str]:
    """The metrics of a task that are the mean of what its documents have."""
    from lm_eval.api.metrics import mean

    return {name for name, aggregation in task.aggregation().items() if aggregation is mean}


def _score(row: Row, found: Mapping[str, Any], suite: TaskSuite) -> TaskScore:
    values = found["results"][row.name]
    keys = [key for key in values if "," in key and "_stderr," not in key]
    metric, filtered = main_metric(keys)
    error = values.get(f"{metric}_stderr,{filtered}")
    asked = [suite.asked.tasks[task] for task in row.tasks]
    chances = [task.chance for task in asked if task.chance is not None]
    score = TaskScore(
        metric=metric,
        filter=filtered,
        value=float(values[f"{metric},{filtered}"]),
        standard_error=float(error) if isinstance(error, float) else None,
        documents=sum(task.documents for task in asked),
        higher_is_better=found["higher_is_better"].get(row.name, {}).get(metric),
    )
    if not score.is_accuracy or len(chances) < len(asked):
        return score
    chance = math.fsum(weight * chance for weight, chance in zip(row.weights, chances, strict=True))
    return TaskScore(**{**vars(score), "chance": chance})


def _answers(samples: list[dict[str, Any]], score: TaskScore) -> tuple[float, ...]:
    """A value for each document, in their order."""
    own = [sample for sample in samples if sample["filter"] == score.filter]
    return tuple(float(sample[score.metric]) for sample in sorted(own, key=lambda sample: sample["doc_id"]))


def as_json(results: Mapping[str, Any]) -> dict[str, JsonValue]:
    """Results of the harness as JSON types: what has no such type as the harness writes it, no number as None.

    Functions of tasks are without the address that they have in this process, so that the same run writes the same.
    """
    from lm_eval.utils import handle_non_serializable

    text = _ADDRESS.sub(">", json.dumps(results, default=handle_non_serializable))
    return json.loads(text, parse_constant=lambda _: None)
