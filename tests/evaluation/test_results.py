"""The JSON of an evaluation is read as it was written."""

from __future__ import annotations

import json
import math

import pytest

from optimum_grasprune.errors import CheckpointError
from optimum_grasprune.evaluation.models import EvaluationResult, MeasuredModel
from optimum_grasprune.evaluation.perplexity import Perplexity
from optimum_grasprune.record import CorpusRecord

CORPUS = CorpusRecord(source="a.txt", split=None, characters=90, sha256="ab" * 32)
RESULT = EvaluationResult(
    corpus=CORPUS,
    models=(
        MeasuredModel("dense", 1000, (0,), Perplexity(math.exp(2), 62, 2, 32, 2.0)),
        MeasuredModel("pruned", 500, (), Perplexity(math.inf, 62, 2, 32, 900.0)),
    ),
)


def test_what_is_written_is_read() -> None:
    values = json.loads(json.dumps(RESULT.to_dict(), allow_nan=False))
    assert EvaluationResult.from_dict(values, "result.json") == RESULT
    assert values["models"][1] == {
        "model": "pruned",
        "parameters": 500,
        "first_tokens": [],
        "perplexity": None,
        "tokens": 62,
        "windows": 2,
        "window": 32,
        "loss": 900.0,
    }


def test_what_version_0_1_wrote_is_read() -> None:
    values = {name: value for name, value in RESULT.to_dict().items() if name != "format"}
    for model in values["models"]:
        del model["first_tokens"]
    assert EvaluationResult.from_dict(values, "result.json").models[0].perplexity == RESULT.models[0].perplexity


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"format": 2}, "result.json: the format is 2, which a later version wrote; this one reads formats up to 1"),
        ({"models": [{}]}, "result.json: models.0.model: field required"),
        ({"corpus": None}, "result.json: corpus: should be an object"),
    ],
)
def test_damage_is_named(change: dict[str, object], line: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        EvaluationResult.from_dict({**RESULT.to_dict(), **change}, "result.json")
    assert str(caught.value) == line
