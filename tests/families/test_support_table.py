"""docs/families.md says what is registered."""

from __future__ import annotations

import re
from pathlib import Path

from optimum_grasprune.families import FAMILIES
from vllm_integration import MODELS

PAGE = Path(__file__).parents[2] / "docs" / "families.md"


def rows() -> dict[str, list[str]]:
    """The other cells of the first table, by family."""
    table = PAGE.read_text(encoding="utf-8").split("\n\n")[1].splitlines()[2:]
    cells = ([cell.strip() for cell in line.strip("|").split("|")] for line in table)
    return {name: rest for name, *rest in cells}


def test_every_family_has_its_row_with_its_types() -> None:
    stated = {name: tuple(re.findall(r"`(\w+)`", types)) for name, (types, *_) in rows().items()}
    assert stated == {name: family.dense_types for name, family in FAMILIES.items()}
    assert all(family.pruned_type == f"grasp_{family.dense_types[0]}" for family in FAMILIES.values())


def test_engines_are_those_that_take_it() -> None:
    for name, (*_, engines) in rows().items():
        assert engines.split(", ") == ["transformers", *["vLLM"] * (FAMILIES[name].classes[2] in MODELS)]
