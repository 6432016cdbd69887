"""README.md and docs/families.md say what is registered."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from optimum_grasprune.families import FAMILIES
from vllm_integration import MODELS

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["README.md", "docs/families.md"])
def rows(request: pytest.FixtureRequest) -> dict[str, list[str]]:
    """The other cells of a page's table of families, by family."""
    text = (ROOT / request.param).read_text(encoding="utf-8")
    table = text[text.index("| family | `model_type` |") :].split("\n\n")[0].splitlines()[2:]
    cells = ([cell.strip() for cell in line.strip("|").split("|")] for line in table)
    return {name: rest for name, *rest in cells}


def test_every_family_has_its_row_with_its_types(rows: dict[str, list[str]]) -> None:
    stated = {name: tuple(re.findall(r"`(\w+)`", types)) for name, (types, *_) in rows.items()}
    assert stated == {name: family.dense_types for name, family in FAMILIES.items()}
    assert all(family.pruned_type == f"grasp_{family.dense_types[0]}" for family in FAMILIES.values())


def test_engines_are_those_that_take_it(rows: dict[str, list[str]]) -> None:
    for name, (*_, methods, engines) in rows.items():
        assert methods == "all"
        assert engines.split(", ") == ["transformers", *["vLLM"] * (FAMILIES[name].classes[2] in MODELS)]
