"""A damaged `grasp_config.json` ends in one line that names the file and the field."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from optimum_grasprune import GRASPConfig, GRASPPruner
from tests.commands.conftest import Outcome
from tests.conftest import make_model, make_tokenizer

Cli = Callable[..., Outcome]


def no_shares(record: dict[str, Any]) -> None:
    del record["budget"]["kept"]["kv_cache"]


def words_for_a_number(record: dict[str, Any]) -> None:
    record["budget"]["dense"]["parameters"] = "many"


def later_format(record: dict[str, Any]) -> None:
    record["format"] = 77


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (no_shares, "budget.kept.kv_cache: field required"),
        (words_for_a_number, "budget.dense.parameters: input should be a valid integer"),
        (later_format, "the format is 77, which a later version wrote; this one reads formats up to 8"),
    ],
)
def test_one_line(
    damage: Callable[[dict[str, Any]], None], line: str, cli: Cli, model_folder: Path, tmp_path: Path
) -> None:
    pruned = GRASPPruner(GRASPConfig(method="random", compensation="none")).prune(make_model(), make_tokenizer())
    pruned.save(tmp_path / "pruned")
    file = tmp_path / "pruned" / "grasp_config.json"
    record = json.loads(file.read_text())
    damage(record)
    file.write_text(json.dumps(record))

    outcome = cli("inspect", "-m", tmp_path / "pruned")
    assert outcome.code == 2
    assert len(outcome.error_lines) == 1 and outcome.error_lines[0].partition(f"{file}: ")[2].startswith(line)

    outcome = cli("export", "-m", model_folder, "--plan", file, tmp_path / "again")
    assert outcome.code == 2 and not (tmp_path / "again").exists()
    assert len(outcome.error_lines) == 1 and f"{file} holds no pruning plan: {line}" in outcome.error_lines[0]
