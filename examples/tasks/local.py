"""Where the local_* tasks have their documents from: JSON lines in a folder that the caller names.

The folder is the metadata `task_data` of lm-evaluation-harness: `optimum-cli grasprune evaluate --task-data FOLDER`, or
`lm_eval --metadata '{"task_data": "FOLDER"}'`.
"""

from __future__ import annotations

import json
from pathlib import Path

from datasets import Dataset


def documents(file: str, task_data: str | None = None, **_: object) -> dict[str, Dataset]:
    """The documents of a task, all as its split `test`. file: its name in the folder, as the task's YAML file says."""
    if task_data is None:
        raise ValueError(
            f"the folder of {file} is missing: --task-data FOLDER, or task_data in the harness's --metadata"
        )
    path = Path(task_data) / file
    with path.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines if line.strip()]
    if not rows:
        raise ValueError(f"{path} is empty")
    return {"test": Dataset.from_list(rows)}
