"""Tables: nulls, conversations, other types, slices, folders, and messages that say what is wrong."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import PreTrainedTokenizerFast

from optimum_grasprune.corpora import Conversations, Text, corpus_in_memory, load_corpus, tokenize
from optimum_grasprune.errors import DataError, OptionError
from tests.conftest import make_tokenizer

CHATML = (
    "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}"
    "{% if m.tool %} ({{ m.tool }}){% endif %}</s>\n{% endfor %}"
)
TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello", "tool": "wave"}]
SHARED_TURNS = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]


def jsonl(file: Path, rows: list[Any]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def written(kind: str, rows: list[str | None], folder: Path) -> str:
    file = folder / f"table.{kind}"
    table = datasets.Dataset.from_dict({"text": rows}, features=datasets.Features({"text": datasets.Value("string")}))
    getattr(table, {"jsonl": "to_json", "csv": "to_csv", "parquet": "to_parquet"}[kind])(file)
    return str(file)


@pytest.fixture(params=["jsonl", "csv", "parquet"])
def table(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[list[str | None]], str]:
    return lambda rows: written(request.param, rows, tmp_path)


def test_nulls_are_left_out(table: Callable[[list[str | None]], str]) -> None:
    assert load_corpus(table(["one", None, "two", None])).text == "one\n\ntwo"


@pytest.mark.parametrize("rows", [[None] * 400, []])
def test_nothing_but_nulls_is_empty(table: Callable[[list[str | None]], str], rows: list[None]) -> None:
    with pytest.raises(DataError, match="is empty"):
        load_corpus(table(rows))


@pytest.mark.parametrize(
    ("split", "rows"),
    [
        ("[:90%]", range(9)),
        ("[90%:]", range(9, 10)),
        ("train[2:4]", range(2, 4)),
        ("test[:1]", range(1)),
        (None, range(10)),
    ],
)
def test_slices_of_a_table_are_of_rows(
    table: Callable[[list[str | None]], str], split: str | None, rows: range
) -> None:
    source = table([f"row {n}" for n in range(10)])
    assert load_corpus(source, split).text == "\n\n".join(f"row {n}" for n in rows)
    with pytest.raises(OptionError, match="should look like"):
        load_corpus(source, "[90-]")


@pytest.mark.parametrize("column", ["messages", "conversations"])
@pytest.mark.parametrize("turns", [TURNS, SHARED_TURNS])
def test_conversations_go_through_the_chat_template(column: str, turns: list[dict[str, str]], tmp_path: Path) -> None:
    source = jsonl(tmp_path / "chat.jsonl", [{column: turns}, {column: None}, {column: turns[:1]}])
    corpus = load_corpus(source, None, column)
    assert isinstance(corpus.parts[source], Conversations)
    tokenizer = make_tokenizer()
    with pytest.raises(DataError, match="has no chat template"):
        tokenize(corpus, tokenizer)
    tokenizer.chat_template = CHATML
    wave = " (wave)" if turns is TURNS else ""
    expected = f"<s>user: Hi</s>\n<s>assistant: Hello{wave}</s>\n<s>user: Hi</s>\n"
    tokens = tokenize(corpus, tokenizer).parts[0]
    assert tokenizer.decode(tokens) == expected
    assert tokens[0] == 0 and (tokens == 1).sum() == 3  # the template's special tokens are tokens
    assert corpus.describe()["characters"] == len("HiHelloHi")


def test_a_template_that_refuses(tmp_path: Path) -> None:
    tokenizer: PreTrainedTokenizerFast = make_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(DataError, match="refuses a conversation of the corpus: roles must alternate"):
        tokenize(corpus_in_memory([TURNS]), tokenizer)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([1, 2], "holds int where text"),
        ([["a", "b"]], "holds list of str where text"),
        ([[1.5]], "holds list of float where text"),
        ([{"a": 1}], "holds dict where text"),
        ([TURNS, [{"role": "user", "content": None}]], "among its conversations"),
        ([[*TURNS, {"role": None, "content": "x"}]], "a message that has no role or no content"),
    ],
)
def test_what_is_not_text_is_refused_with_its_type(rows: list[Any], message: str, tmp_path: Path) -> None:
    source = jsonl(tmp_path / "table.jsonl", [{"messages": row} for row in rows])
    with pytest.raises(DataError, match=f"the column messages of {source} {message}|{message}"):
        load_corpus(source, None, "messages")
    with pytest.raises(DataError, match=message):
        corpus_in_memory(rows)


def test_lists_in_memory() -> None:
    assert corpus_in_memory(["one", None, "two"]).text == "one\n\ntwo"
    assert isinstance(next(iter(corpus_in_memory([TURNS]).parts.values())), Conversations)
    for nothing in ([None, None], [], [""]):
        with pytest.raises(DataError, match="are empty"):
            corpus_in_memory(nothing)


def test_saved_datasets_load(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"text": [f"row {n}" for n in range(4)], "other": [1] * 4})
    rows.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"test": rows.select([3]), "train": rows}).save_to_disk(tmp_path / "two")
    for folder, split, expected in (
        ("one", None, "row 0\n\nrow 1\n\nrow 2\n\nrow 3"),
        ("one", "[50%:]", "row 2\n\nrow 3"),
        ("two", "[:1]", "row 0"),
        ("two", "test", "row 3"),
    ):
        assert load_corpus(str(tmp_path / folder), split).text == expected
    with pytest.raises(OptionError, match="dataset_split='dev': .* has the splits test, train"):
        load_corpus(str(tmp_path / "two"), "dev")
    with pytest.raises(OptionError, match="has the columns text, other"):
        load_corpus(str(tmp_path / "one"), None, "body")


def test_folders_of_files_load(tmp_path: Path) -> None:
    texts, tables, bare = tmp_path / "texts", tmp_path / "tables", tmp_path / "bare"
    for folder in (texts / "deeper", texts / ".git", tables, bare):
        folder.mkdir(parents=True)
    (texts / "b.txt").write_text("second")
    (texts / "a.md").write_text("first<|endoftext|>")
    (texts / "deeper" / "c.txt.gz").write_bytes(gzip.compress(b"third"))
    (texts / ".git" / "d.txt").write_text("hidden")
    (texts / "picture.png").write_bytes(b"\x89PNG")
    assert load_corpus(str(texts)).text == "first\n\n\nsecond\n\nthird"
    assert load_corpus(str(texts), "[:5]").text == "first"
    jsonl(tables / "train-00000.jsonl", [{"text": "one"}])
    jsonl(tables / "train-00001.jsonl", [{"text": "two"}])
    jsonl(tables / "test-00000.jsonl", [{"text": "three"}])
    assert load_corpus(str(tables)).text == "one\n\ntwo"
    assert load_corpus(str(tables), "[:1]").text == "one"
    assert load_corpus(str(tables), "test").text == "three"
    with pytest.raises(DataError, match="holds no files that could be a corpus: .txt"):
        load_corpus(str(bare))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "is empty"),
        ("a.jsonl", b" \n\n", "is empty"),
        ("a.csv", b"", "is empty"),
        ("a.csv", b"text\n", "is empty"),
        ("a.jsonl", b'{"text": "one"}\n{"text": "two"', "line 2 is not JSON: "),
        ("a.jsonl", b'{"text": "one"}\n[1]\n', "line 2 is no JSON object"),
        ("a.json", b"{", "line 1 is not JSON: "),
        ("a.jsonl", b'{"text": "caf\xe9"}\n', "is not UTF-8: byte 13 cannot be read"),
        ("a.jsonl.gz", b"no gzip", "cannot be read"),
        ("a.parquet", b"no parquet", "cannot be loaded: "),
    ],
)
def test_messages_say_what_is_wrong(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load_corpus(str(tmp_path / name))
    for nothing in ("StopIteration", "An error occurred", "\n"):
        assert nothing not in str(caught.value)


def test_text_of_a_table_is_text(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", [{"text": "a</s>"}])
    assert isinstance(load_corpus(source).parts[source], Text)


def test_nothing_is_drawn_while_a_table_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    disabled = datasets.are_progress_bars_disabled()
    load_corpus(jsonl(tmp_path / "drawn.jsonl", [{"text": f"row {tmp_path}"}]))
    assert capsys.readouterr().err == ""
    assert datasets.are_progress_bars_disabled() == disabled


def test_a_slice_behind_the_last_row_is_empty(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", [{"text": "one"}, {"text": "two"}])
    for split in ("[2:]", "[7:]", "[50%:50%]"):
        with pytest.raises(DataError, match="is empty in split"):
            load_corpus(file, split)
    with pytest.raises(OptionError, match="should look like"):
        load_corpus(file, f"[{'9' * 5000}:]")


def test_json_that_is_nested_without_end(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("[" * 99_999)
    with pytest.raises(DataError, match="a.jsonl cannot be loaded: line 1 is not JSON: it is nested too deeply"):
        load_corpus(str(tmp_path / "a.jsonl"))


def test_datasets_says_nothing_beside_the_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": ')
    before = datasets.logging.get_verbosity()
    with pytest.raises(DataError, match="a.jsonl cannot be loaded: line 1 is not JSON"):
        load_corpus(str(tmp_path / "a.jsonl"))
    assert not caplog.records and datasets.logging.get_verbosity() == before


def test_rows_that_cannot_be_decoded(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": {"\\u0000": [{"\\u0000": 1}]}}\n')
    with pytest.raises(DataError, match="the column text of .* (cannot be loaded: KeyError: |holds dict)"):
        load_corpus(str(tmp_path / "a.jsonl"))
