"""What tables say of the speed of checkpoints, where a benchmark was given."""

from __future__ import annotations

import copy
import csv
import io
import json

from optimum_grasprune.comparison import ComparisonResult
from optimum_grasprune.comparison.tables import csv_text, full_table, markdown, short_table
from tests.comparison.test_tables import RESULT, STORED, result_of


def served() -> ComparisonResult:
    stored = copy.deepcopy(STORED)
    how = {"mode": "serve", "point": "10 → 20, 4 at once", "device": "NVIDIA H100", "repetitions": 3}
    stored["served"] = {**how, "tokens_per_second": 1234.5}
    stored["cells"][0]["served"] = {"tokens_per_second": 2469.0, "ratio": 2.004}
    return result_of(stored)


def test_tables() -> None:
    for table, back in ((short_table, 0), (full_table, 2)):
        columns, rows = table(served())
        ends = [row[len(row) - back - 2 : len(row) - back] for row in (columns, *rows)]
        assert ends[:2] == [["tokens/s", "× dense"], ["1,234", "1.00"]]
        assert ends[2:] == [["–", "–"], ["–", "–"], ["2,469", "2.00"], ["–", "–"]]
        assert {len(row) for row in rows} == {len(columns)}
        assert "tokens/s" not in table(RESULT)[0]
    note = "by `benchmark` (serve) at 10 → 20, 4 at once on NVIDIA H100, the median of 3; *× dense*: paired"
    assert note in markdown(served()) and "*Tokens/s*" not in markdown(RESULT)


def test_csv_and_json() -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text(served()))))
    assert [(row["tokens_per_second"], row["speedup"]) for row in rows] == [
        ("1234.5", "1.0"),
        ("", ""),
        ("", ""),
        ("2469.0", "2.004"),
        ("", ""),
    ]
    assert rows[4]["error"] == "the loss is not finite" and not any(None in row for row in rows)
    assert result_of(json.loads(json.dumps(served().to_dict()))) == served()
