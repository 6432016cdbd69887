"""Records of pruned checkpoints that are damaged: as a recipe, as a plan, beside the model, and as results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import strategies as st

from optimum_grasprune import load_pruned_model
from optimum_grasprune.errors import PlanError
from optimum_grasprune.units import PruningPlan
from tests.fuzz.cases import Fuzz, fuzzed
from tests.fuzz.strategies import as_json, edited, json_files, values

_RECORD = "grasp_config.json"


@fuzzed(300, data=st.data(), folder=st.booleans())
@pytest.mark.usefixtures("nothing_is_pruned")
def test_recipes_of_checkpoints(
    fuzz: Fuzz, dense: dict[str, Path], pruned: dict[str, Path], corpus: Path, data: st.DataObject, folder: bool
) -> None:
    record = (pruned["llama"] / _RECORD).read_bytes()
    with fuzz.case(dense["llama"], corpus) as work:
        (work / "made").mkdir()
        (work / "made" / _RECORD).write_bytes(data.draw(json_files(record)))
        text = ("--dataset", "corpus.txt", "--num-samples", 2, "--seq-len", 16)
        fuzz.run("export", "-c", "made" if folder else f"made/{_RECORD}", "-m", "llama", *text, "out")


@fuzzed(400, data=st.data(), of_plan=st.booleans())
def test_plans(fuzz: Fuzz, dense: dict[str, Path], pruned: dict[str, Path], data: st.DataObject, of_plan: bool) -> None:
    """What comes of one that is not refused is a checkpoint that loads, of the size that its record says."""
    content = (pruned["llama"] / _RECORD).read_bytes()
    record = json.loads(content)
    plans = edited(record["plan"]).map(lambda plan: as_json({**record, "plan": plan}))
    with fuzz.case(dense["llama"]) as work:
        (work / "plan.json").write_bytes(data.draw(plans if of_plan else json_files(content)))
        if fuzz.run("export", "-m", "llama", "--plan", "plan.json", "out").code == 0:
            size = json.loads((work / "out" / _RECORD).read_text())["budget"]["pruned"]["parameters"]
            assert load_pruned_model(work / "out").num_parameters() == size


@fuzzed(300, data=st.data())
def test_records_beside_models(fuzz: Fuzz, pruned: dict[str, Path], data: st.DataObject) -> None:
    with fuzz.case(pruned["llama"]) as work:
        file = work / "llama" / _RECORD
        file.write_bytes(data.draw(json_files(file.read_bytes())))
        fuzz.run("inspect", "-m", "llama", "--json", "result.json")


@fuzzed(400, content=values)
def test_anything_as_a_plan(fuzz: Fuzz, content: object) -> None:
    with fuzz.case():
        error = fuzz.refused(lambda: PruningPlan.from_dict(content))
        assert isinstance(error, PlanError)


@fuzzed(100, data=st.data())
def test_checkpoints_that_are_replaced(
    fuzz: Fuzz, dense: dict[str, Path], pruned: dict[str, Path], data: st.DataObject
) -> None:
    """A folder whose record is none is no checkpoint of ours, and nothing in it is replaced."""
    content = data.draw(json_files((pruned["llama"] / _RECORD).read_bytes()))
    with fuzz.case(dense["llama"]) as work:
        (work / "out").mkdir()
        (work / "out" / _RECORD).write_bytes(content)
        before = sorted(path.name for path in work.iterdir())
        outcome = fuzz.cli("export", "-m", "llama", "--method", "magnitude", "--overwrite", "out")
        if outcome.code:
            assert (work / "out" / _RECORD).read_bytes() == content
            assert sorted(path.name for path in work.iterdir()) == before
