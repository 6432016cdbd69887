"""A few questions in the form of each local task, and the same in the form in which a hub has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TASK_FILES = Path(__file__).parent.parent / "examples" / "tasks"
PAPER = ("arc_challenge", "arc_easy", "hellaswag", "piqa", "winogrande")


def _choices(*texts: str) -> dict[str, list[str]]:
    return {"text": list(texts), "label": list("ABCDE"[: len(texts)])}


_ARC = [
    {"id": "1", "question": "What is hot?", "choices": _choices("ice", "fire", "snow", "a pond"), "answerKey": "B"},
    {"id": "2", "question": "What flies?", "choices": _choices("a bird", "a stone", "a tree"), "answerKey": "A"},
    {"id": "3", "question": "What is wet?", "choices": _choices("sand", "dust", "salt", "rain"), "answerKey": "D"},
]
_HELLASWAG = [
    ("Roofs", "A man is on a roof.", "he", ["sits [x]down.", "rips tiles off.", "holds a cube.", "sings."], 1),
    ("Chess", "Two play. [title] One", "wins", ["and goes.", "a  horse.", "by luck.", "no more."], 2),
    ("Rain", "It rains.", "we", ["stay dry.", "get wet.", "eat.", "look up."], 1),
]
_OPENBOOK = [
    {"id": "1", "question_stem": "Predators eat", "choices": _choices("lions", "bunnies", "grass"), "answerKey": "B"},
    {"id": "2", "question_stem": "Fog is near", "choices": _choices("a marsh", "a plain"), "answerKey": " A"},
]
HUB: dict[str, list[dict[str, Any]]] = {
    "arc_easy": _ARC,
    "arc_challenge": _ARC[::-1],
    "hellaswag": [
        {"activity_label": label, "ctx_a": first, "ctx_b": then, "endings": endings, "label": str(gold)}
        for label, first, then, endings, gold in _HELLASWAG
    ],
    "piqa": [
        {"goal": "Open a jar", "sol1": "turn the lid", "sol2": "turn the glass", "label": 0},
        {"goal": "Dry a shirt", "sol1": "in the rain", "sol2": "in the sun", "label": 1},
        {"goal": "Cut bread", "sol1": "with a knife", "sol2": "with a spoon", "label": 0},
    ],
    "winogrande": [
        {"sentence": "Sarah beat Maria so _ won.", "option1": "Sarah", "option2": "Maria", "answer": "1"},
        {"sentence": "The cup broke, the _ was thin.", "option1": "table", "option2": "cup", "answer": "2"},
        {"sentence": "Ann asked Eve and _ told her.", "option1": "Ann", "option2": "Eve", "answer": "2"},
    ],
    "boolq": [
        {"passage": "Ethanol is a fuel.", "question": "is ethanol a fuel", "label": 1},
        {"passage": "Stones sink.", "question": "do stones swim", "label": 0},
    ],
    "openbookqa": _OPENBOOK,
    "lambada_openai": [{"text": "He gave me a stone and I kept the stone"}, {"text": "Come in, said she, come in"}],
}
"""Rows as the hub's data sets have them, by the harness's task."""

FILES = {
    "arc_easy": "arc_easy_test",
    "arc_challenge": "arc_challenge_test",
    "hellaswag": "hellaswag_validation",
    "piqa": "piqa_validation",
    "winogrande": "winogrande_xl_validation",
    "boolq": "boolq_validation",
    "openbookqa": "openbookqa_test",
    "lambada_openai": "lambada_openai_test",
}


def local_rows(task: str) -> list[dict[str, Any]]:
    """The same as lines of a local file."""
    if task != "hellaswag":
        return HUB[task]
    # Worked out by hand: the second part of the context with a capital, brackets, titles and double spaces gone.
    queries = ["Roofs: A man is on a roof. He", "Chess: Two play.. One Wins", "Rain: It rains. We"]
    endings = [
        ["sits down.", "rips tiles off.", "holds a cube.", "sings."],
        ["and goes.", "a horse.", "by luck.", "no more."],
    ]
    endings.append(_HELLASWAG[2][3])
    golds = [row[4] for row in _HELLASWAG]
    return [
        {"query": query, "choices": choices, "label": gold}
        for query, choices, gold in zip(queries, endings, golds, strict=True)
    ]


def write_task_data(folder: Path) -> Path:
    """The local files of all tasks."""
    folder.mkdir(parents=True, exist_ok=True)
    for task, name in FILES.items():
        lines = (json.dumps(row) for row in local_rows(task))
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
