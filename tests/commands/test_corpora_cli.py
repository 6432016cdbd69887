"""Corpora through the command line: what is read as what, and what is refused before a step is made."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing

from tests.commands.conftest import Outcome
from tests.conftest import make_model, make_tokenizer

Cli = Callable[..., Outcome]
FAST = ("--method", "flap", "--num-samples", 4, "--seq-len", 24, "--keep-ratio", 0.7)
SENTENCE = "Number one is followed by number two, as every child knows. "


def jsonl(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def run(cli: Cli, command: str, model: Path, corpus: Path, output: Path, *options: object) -> Outcome:
    if command == "export":
        return cli("export", "-m", model, "--dataset", corpus, *FAST, *options, output)
    if command == "evaluate":
        return cli("evaluate", "-m", model, "--dataset", corpus, "--seq-len", 24, "--num-samples", 2, *options)
    chosen = ("--methods", "flap", "--keep-ratios", 0.7, "--num-samples", 4, "--seq-len", 24, "--no-plot")
    windows = ("--evaluate", f"all={corpus}", "--eval-seq-len", 24, "--eval-samples", 2)
    return cli("compare", "-m", model, "--dataset", corpus, *chosen, *windows, *options, output)


def refused(outcome: Outcome, output: Path, message: str) -> None:
    assert outcome.code == 2 and len(outcome.error_lines) == 1, outcome.error_lines
    assert message in outcome.error_lines[0]
    assert not output.exists()


@pytest.fixture
def foreign(model_folder: Path, tmp_path: Path) -> Path:
    """A model with a tokenizer that got a token after it, as when a pad token is added without resizing."""
    folder = tmp_path / "foreign"
    make_model().save_pretrained(folder)
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["child"])
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("command", ["export", "evaluate", "compare"])
def test_token_ids_beyond_the_vocabulary(
    cli: Cli, command: str, foreign: Path, corpus_file: Path, tmp_path: Path
) -> None:
    outcome = run(cli, command, foreign, corpus_file, tmp_path / "out")
    refused(
        outcome,
        tmp_path / "out",
        "the tokenizer gives the token 'child' the id 258, and the model's vocabulary has 258",
    )


@pytest.mark.parametrize("command", ["export", "evaluate", "compare"])
@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"text": None}] * 4000, (), "is empty"),
        ([{"text": 5}] * 9, (), "holds int where text or conversations are wanted"),
        ([{"text": ["a", "b"]}] * 9, (), "holds list of str where text"),
        ([{"messages": [{"role": "user", "content": "Hi"}]}] * 9, (), "has the columns messages"),
    ],
)
def test_tables_that_hold_no_text(
    cli: Cli, command: str, rows: list[Any], options: tuple[str, ...], message: str, model_folder: Path, tmp_path: Path
) -> None:
    corpus = jsonl(tmp_path / "table.jsonl", rows)
    refused(run(cli, command, model_folder, corpus, tmp_path / "out", *options), tmp_path / "out", message)


def test_conversations_need_a_template_and_go_through_it(cli: Cli, model_folder: Path, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": SENTENCE}, {"role": "assistant", "content": SENTENCE}]
    corpus = jsonl(tmp_path / "chat.jsonl", [{"messages": turns}] * 40)
    out, column = tmp_path / "out", ("--text-column", "messages")
    refused(run(cli, "export", model_folder, corpus, out, *column), out, "the tokenizer has no chat template")
    model, tokenizer = tmp_path / "model", make_tokenizer()
    make_model().save_pretrained(model)
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
    tokenizer.save_pretrained(model)
    for command in ("export", "evaluate"):
        assert run(cli, command, model, corpus, out, *column).code == 0
    record = json.loads((out / "grasp_config.json").read_text())
    assert record["calibration"]["characters"] == 80 * len(SENTENCE)


def test_a_slice_of_a_table(cli: Cli, model_folder: Path, tmp_path: Path) -> None:
    corpus = jsonl(tmp_path / "table.jsonl", [{"text": f"{n} {SENTENCE}"} for n in range(100)])
    out = tmp_path / "out"
    assert run(cli, "export", model_folder, corpus, out, "--dataset-split", "[:90%]").code == 0
    record = json.loads((out / "grasp_config.json").read_text())
    texts = [f"{n} {SENTENCE}" for n in range(90)]
    assert record["calibration"]["characters"] == len("\n\n".join(texts))


@pytest.mark.parametrize(
    ("switch", "first"), [((), [0]), (("--no-bos",), []), (("--bos",), [0])], ids=["as it does", "none", "asked for"]
)
def test_bos(cli: Cli, switch: tuple[str, ...], first: list[int], corpus_file: Path, tmp_path: Path) -> None:
    model, tokenizer = tmp_path / "model", make_tokenizer()
    make_model().save_pretrained(model)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.save_pretrained(model)
    out, result = tmp_path / "out", tmp_path / "result.json"
    assert run(cli, "export", model, corpus_file, out, *switch).code == 0
    record = json.loads((out / "grasp_config.json").read_text())
    assert record["calibration"]["first_tokens"] == first
    assert run(cli, "evaluate", model, corpus_file, out, *switch, "--json", result).code == 0
    (measured,) = json.loads(result.read_text())["models"]
    assert (measured["first_tokens"], measured["tokens"]) == (first, 2 * 23)


@pytest.mark.filterwarnings("always")
def test_a_small_corpus_is_warned_of_in_one_line(cli: Cli, model_folder: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "small.txt"
    corpus.write_text(SENTENCE * 15)
    outcome = run(cli, "export", model_folder, corpus, tmp_path / "out", "--method", "grasprune")
    (line,) = [line for line in outcome.error_lines if "held out" in line]
    assert line.startswith("optimum-cli grasprune export: warning: the corpus ")
