"""`benchmarks/conversations.py`, on the random model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from optimum_grasprune.corpora import load_corpus
from optimum_grasprune.corpora.corpus import Conversations
from tests.conftest import script

TEMPLATE = "{% for turn in messages %}{{ turn['role'] }}: {{ turn['content'] }}\n{% endfor %}"


def test_questions_are_different_and_of_the_seed() -> None:
    questions = script("benchmarks/conversations.py").questions
    assert len(set(questions(256, 0))) == 256 and questions(9, 0) == questions(9, 0) != questions(9, 1)
    with pytest.raises(ValueError, match="--count 257: should be between 1 and 256"):
        questions(257, 0)


def test_what_is_written_can_be_calibrated_on(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(model_folder)
    output = tmp_path / "chats.jsonl"
    command = ["conversations.py", str(model_folder), str(output), "--count", "5", "--length", "7", "--batch-size", "2"]
    monkeypatch.setattr(sys, "argv", command)
    script("benchmarks/conversations.py").main()
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [[turn["role"] for turn in line["text"]] for line in lines] == [["user", "assistant"]] * 5
    (part,) = load_corpus(str(output), None, "text").parts.values()
    assert isinstance(part, Conversations) and "user: " in part.rendered(tokenizer)
