from __future__ import annotations

import math
from typing import Any

import pytest

from optimum_grasprune.evaluation.context_tables import long_context_tables
from optimum_grasprune.evaluation.needles import Recall
from optimum_grasprune.evaluation.perplexity import Perplexity
from optimum_grasprune.evaluation.positions import RangeLoss, mean_of, rise
from optimum_grasprune.evaluation.report import EvaluationReport, NeedleRecord, ReportedModel
from optimum_grasprune.record import CorpusRecord

CORPUS = CorpusRecord(source="novel.txt", split=None, characters=100, sha256="0")


def model(name: str, losses: list[list[float]], recalled: list[list[bool]], nats: float) -> ReportedModel:
    """losses: of two windows, by range of 63 and 64 predictions.  recalled: of two texts, by depth."""
    places = tuple(
        RangeLoss(start, stop, sum(values) / 2, 2 * (stop - start), tuple(values))
        for (start, stop), values in zip(((1, 64), (64, 128)), losses, strict=True)
    )
    loss = mean_of(places)
    return ReportedModel(
        model=f"/of/a/machine/{name}",
        parameters=1,
        perplexity={"novel": Perplexity(math.exp(loss), 254, 2, 128, loss)},
        tasks={},
        by_position={"novel": places},
        needles=tuple(
            Recall(1024, depth, tuple(values), (nats, nats))
            for depth, values in zip((0.0, 100.0), recalled, strict=True)
        ),
    )


def report(**values: Any) -> EvaluationReport:
    dense = model("dense", [[2.0, 2.0], [1.0, 1.0]], [[True, True], [True, True]], 0.5)
    pruned = model("pruned", [[2.1, 2.3], [1.5, 1.5]], [[True, False], [True, True]], 2.0)
    return EvaluationReport(
        **{
            "corpora": {"novel": CORPUS},
            "tasks": None,
            "backend": "hf",
            "dtype": "auto",
            "beside_first": True,
            "models": (dense, pruned),
            "versions": {},
            "needles": NeedleRecord(corpus=CORPUS, lengths=(1024,), depths=(0.0, 100.0), texts=2, seed=0),
            **values,
        }
    )


def test_dense_beside_pruned_by_hand() -> None:
    places, found, nats = long_context_tables(report())
    assert places.columns == ("tokens before", "dense", "pruned", "nats added")
    # Of 0.1 and 0.3 the mean is 0.2 and the standard error √0.02 ÷ √2.
    assert places.rows == (
        ("1 to 63", "7.389", "9.025", "+0.200 ± 0.100"),
        ("64 to 127", "2.718", "4.482", "+0.500 ± 0.000"),
    )
    assert "2 windows of 128 tokens" in places.footer
    assert found.columns == ("", "dense", "pruned", "difference")
    # Of 0, -1, 0, 0 the standard error is √(0.75 ÷ 3) ÷ 2; of 0 and -1 it is √0.5 ÷ √2.
    assert found.rows == (
        ("1,024 tokens", "100.0", "75.0", "-25.0 ± 25.0"),
        ("depth 0 %", "100.0", "50.0", "-50.0 ± 50.0"),
        ("depth 100 %", "100.0", "100.0", "+0.0 ± 0.0"),
        ("all", "100.0", "75.0", "-25.0 ± 25.0"),
    )
    assert nats.rows[-1] == ("all", "0.50", "2.00", "+1.50 ± 0.00")


def test_side_by_side_nothing_is_held_against_the_first() -> None:
    places, found, _ = long_context_tables(report(beside_first=False))
    assert places.columns == ("tokens before", "dense", "pruned") and places.rows[0] == ("1 to 63", "7.389", "9.025")
    assert found.rows[-1] == ("all", "100.0", "75.0") and "±" not in found.footer


def test_without_either_there_is_no_table() -> None:
    bare = ReportedModel(model="m", parameters=1, perplexity={}, tasks={})
    assert long_context_tables(report(models=(bare,), needles=None)) == []


def test_the_mean_counts_predictions() -> None:
    dense, _ = report().models
    assert mean_of((dense.by_position or {})["novel"]) == pytest.approx((63 * 2.0 + 64 * 1.0) / 127)


def test_one_window_has_no_error() -> None:
    found = rise(RangeLoss(1, 64, 2.5, 63, (2.5,)), RangeLoss(1, 64, 2.0, 63, (2.0,)))
    assert found.shown(".3f") == "+0.500"


def test_it_is_what_a_file_holds() -> None:
    whole = report()
    assert EvaluationReport.from_dict(whole.to_dict(), "report.json") == whole
    assert "needles" not in report(needles=None).to_dict()
