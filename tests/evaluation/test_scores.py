from __future__ import annotations

import json
import math
from typing import Any

import pytest

from optimum_grasprune.evaluation.report import EvaluationReport, ReportedModel
from optimum_grasprune.evaluation.scores import TaskScore, against_dense, main_metric, mean_score
from optimum_grasprune.evaluation.tables import tables
from optimum_grasprune.evaluation.tasks import AskedTask, AskedTasks


def score(value: float, **values: Any) -> TaskScore:
    return TaskScore(**{"metric": "acc", "value": value, "standard_error": 0.03, "documents": 100, **values})


@pytest.mark.parametrize(
    ("keys", "chosen"),
    [
        (["acc,none", "acc_norm,none"], ("acc_norm", "none")),
        (["perplexity,none", "acc,none"], ("acc", "none")),
        (["exact_match,strict", "exact_match,flexible"], ("exact_match", "strict")),
        (["exact_match,strict", "exact_match,none"], ("exact_match", "none")),
        (["word_perplexity,none", "bits_per_byte,none"], ("word_perplexity", "none")),
    ],
)
def test_the_metric_that_is_shown(keys: list[str], chosen: tuple[str, str]) -> None:
    assert main_metric(keys) == chosen


def test_mean_counts_every_task_once() -> None:
    scores = [score(0.5, chance=0.25), score(0.7, documents=900, standard_error=0.04, chance=0.5)]
    mean = mean_score([*scores, score(12.0, metric="word_perplexity", higher_is_better=False)])
    assert mean is not None and mean.value == pytest.approx(0.6) and mean.chance == pytest.approx(0.375)
    assert mean.standard_error == pytest.approx(math.hypot(0.03, 0.04) / 2) and mean.documents == 1000
    assert mean_score(scores[:1]) is None
    for lacking in ({"standard_error": None}, {"chance": None}):
        other = mean_score([scores[0], score(0.7, **{"chance": 0.5, **lacking})])
        assert other is not None and getattr(other, next(iter(lacking))) is None


def test_against_the_dense_model() -> None:
    answers = [([1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0])]
    found = against_dense(score(0.25), score(0.5, chance=0.25), answers)
    assert (found.recovery, found.above_chance_kept) == (0.5, 0.0)
    assert found.difference is not None and found.difference.difference == -0.25
    worse = against_dense(score(20.0, higher_is_better=False), score(10.0, metric="ppl", higher_is_better=False), None)
    assert (worse.recovery, worse.above_chance_kept, worse.difference) == (None, None, None)


def report(*models: ReportedModel, beside_first: bool = True) -> EvaluationReport:
    asked = AskedTask(version="1.0", documents=4, num_fewshot=0, chance=0.25, requests_sha256="ab" * 32)
    return EvaluationReport(
        corpora={},
        tasks=AskedTasks(tasks={"arc_easy": asked}, lm_eval="0.4.13"),
        backend="hf",
        dtype="auto",
        beside_first=beside_first,
        models=models,
        versions={},
    )


def test_report_is_read_as_it_was_written_and_shown() -> None:
    dense, pruned = score(0.5, chance=0.25, metric="acc_norm"), score(0.45, metric="acc_norm")
    answers = [([1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0])]
    harness = {"results": {"arc_easy": {"acc_norm,none": 0.45, "alias": "arc_easy"}}}
    one = ReportedModel(model="dense", parameters=1000, perplexity={}, tasks={"arc_easy": dense}, harness=harness)
    other = ReportedModel(
        model="pruned",
        parameters=600,
        perplexity={},
        tasks={"arc_easy": pruned},
        against_dense={"arc_easy": against_dense(pruned, dense, answers)},
        harness=harness,
    )
    whole = report(one, other)
    values = json.loads(json.dumps(whole.to_dict(), allow_nan=False))
    assert EvaluationReport.from_dict(values, "result.json") == whole
    assert "against_dense" not in values["models"][0] and values["models"][1]["harness"] == harness
    (table,) = tables(whole)
    assert table.title == "pruned beside dense"
    assert table.rows[0] == (
        "arc_easy (acc_norm)", "50.0 ± 3.0", "45.0 ± 3.0", "90.0%", "80.0%", "-25.0 ± 79.6", "no"
    )  # fmt: skip
    assert table.rows[-1][:3] == ("parameters", "1,000", "600")
    assert "4 questions, 0-shot, hf in auto" in table.footer
    (flat,) = tables(report(one, other, beside_first=False))
    assert flat.columns == ("", "dense", "pruned") and flat.rows[0] == (
        "arc_easy (acc_norm)",
        "50.0 ± 3.0",
        "45.0 ± 3.0",
    )
