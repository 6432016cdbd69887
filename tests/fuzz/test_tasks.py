"""Task files of lm-evaluation-harness, and their data, damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import strategies as st

from tests.fuzz.cases import Fuzz, fuzzed
from tests.fuzz.strategies import damaged, texts
from tests.tiny_tasks import write_task_data

_TASK = b"""task: own_task
dataset_path: json
dataset_kwargs: {data_files: {test: task-data/piqa_validation.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{goal}}"
doc_to_choice: ["{{sol1}}", "{{sol2}}"]
doc_to_target: label
metric_list: [{metric: acc}]
"""


@pytest.mark.usefixtures("own_tasks_alone")
@fuzzed(100, data=st.data(), of_task=st.booleans())
def test_tasks(fuzz: Fuzz, dense: dict[str, Path], data: st.DataObject, of_task: bool) -> None:
    """A task file may name code of its own, which is run: what is damaged here never becomes such a name."""
    pytest.importorskip("lm_eval")
    with fuzz.case(dense["llama"]) as work:
        write_task_data(work / "task-data")
        (work / "tasks").mkdir()
        rows = work / "task-data" / "piqa_validation.jsonl"
        rows.write_bytes(rows.read_bytes() if of_task else data.draw(damaged(rows.read_bytes())))
        task = data.draw(damaged(_TASK).filter(lambda content: b"!" not in content)) if of_task else _TASK
        (work / "tasks" / "own_task.yaml").write_bytes(task)
        names = data.draw(st.just("own_task") | texts.filter(lambda text: "\x00" not in text and "*" not in text))
        fuzz.run("evaluate", "-m", "llama", f"--tasks={names}", "--include-path", "tasks", "--limit", 1)
