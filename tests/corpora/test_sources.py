from __future__ import annotations

import ast
import gzip
import importlib
import inspect
import json
from collections.abc import Iterator
from pathlib import Path

import datasets
import huggingface_hub.constants
import pytest
from transformers import PreTrainedTokenizerFast

from optimum_grasprune.corpora import corpus, corpus_in_memory, load_corpus, tables, text_files, tokenize
from optimum_grasprune.corpora.standard_library import is_held_out
from optimum_grasprune.errors import DataError, OptionError


def test_file_formats_hold_the_same_text(tmp_path: Path) -> None:
    text = "first line\nsecond – line"
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": part}) + "\n" for part in ("first line", "second")))
    assert load_corpus(str(tmp_path / "a.txt")).text == text
    assert load_corpus(str(tmp_path / "a.txt.gz")).sha256 == load_corpus(str(tmp_path / "a.txt")).sha256
    assert load_corpus(str(tmp_path / "a.jsonl")).text == "first line\n\nsecond"


def test_slices_by_percent_and_by_character(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("0123456789")
    for split, expected in [("[:90%]", "012345678"), ("test[90%:]", "9"), ("[2:4]", "23"), ("train", "0123456789")]:
        assert load_corpus(str(file), split).text == expected
    with pytest.raises(OptionError, match=r"dataset_split='\[90-\]': should look like"):
        load_corpus(str(file), "[90-]")


def test_end_of_document_marks_become_newlines(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("one<|endoftext|>two")
    assert load_corpus(str(file)).text == "one\ntwo"


def test_unusable_corpora(tmp_path: Path) -> None:
    empty, latin, table = tmp_path / "empty.txt", tmp_path / "latin.txt", tmp_path / "table.csv"
    empty.write_text(" \n")
    latin.write_bytes(b"caf\xe9 au lait")
    table.write_text("title,body\na,b\n")
    with pytest.raises(DataError, match="is empty"):
        load_corpus(str(empty))
    with pytest.raises(DataError, match="is not UTF-8: byte 3 cannot be read"):
        load_corpus(str(latin))
    with pytest.raises(OptionError, match="text_column='text': .* has the columns title, body"):
        load_corpus(str(table))
    with pytest.raises(OptionError, match="no such file"):
        load_corpus(str(tmp_path / "missing.txt"))
    (tmp_path / "broken.gz").write_bytes(b"no gzip")
    with pytest.raises(DataError, match="cannot be read"):
        load_corpus(str(tmp_path / "broken.gz"))


def test_sampled_corpus_is_english(tokenizer: PreTrainedTokenizerFast) -> None:
    corpus = load_corpus("sampled")
    assert len(corpus.text) > 500_000
    assert corpus.text.count(" the ") > 2000
    assert len(tokenize(corpus, tokenizer).parts[0]) >= len(corpus.text)  # one token per byte, and no special ones


def test_builtin_corpus_is_split_by_module() -> None:
    train, test = load_corpus("builtin"), load_corpus("builtin", "test")
    assert train.sha256 == load_corpus("builtin", "train").sha256 != test.sha256
    assert len(train.text) > 4 * len(test.text) > 100_000
    for name in ("json", "argparse", "statistics", "textwrap", "heapq", "dataclasses", "functools", "zipfile"):
        docstring = ast.get_docstring(ast.parse(inspect.getsource(importlib.import_module(name))))
        if docstring:
            assert (docstring in test.text) == is_held_out(name)
            assert (docstring in train.text) != is_held_out(name)
    assert load_corpus("builtin", "train[:10%]").text == train.text[: len(train.text) // 10]
    with pytest.raises(OptionError, match="dataset_split='valid': the builtin corpus has the splits train and test"):
        load_corpus("builtin", "valid")


def test_strings_in_memory() -> None:
    corpus = corpus_in_memory(["one", "two<|endoftext|>three"])
    assert (corpus.text, corpus.source) == ("one\n\ntwo\nthree", "in memory")
    assert corpus_in_memory("one text").text == "one text"
    with pytest.raises(DataError, match="are empty"):
        corpus_in_memory([" "])


@pytest.mark.parametrize("name", ["wikitext2", "wikitext-2", "c4", "allenai/c4"])
def test_usual_names_reach_the_library_with_their_arguments(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, object]] = []

    def load_dataset(**arguments: object) -> datasets.Dataset:
        asked.append(arguments)
        return datasets.Dataset.from_dict({"text": ["from", "the hub"]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load_corpus(name).text == "from\n\nthe hub"
    assert load_corpus(name, "validation").split == "validation"
    limit = "[:5000]" if "c4" in name else ""
    assert [call["split"] for call in asked] == [f"train{limit}", f"validation{limit}"]
    load_corpus(name, "train[:70]")
    load_corpus(name, "[10%:]")
    assert [call["split"] for call in asked[2:]] == ["train[:70]", "train[10%:]"]
    assert asked[0]["path"] == ("allenai/c4" if "c4" in name else "Salesforce/wikitext")


@pytest.mark.parametrize("name", ["fineweb-edu", "HuggingFaceFW/fineweb-edu"])
def test_of_what_is_streamed_the_first_documents_are_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, object]] = []
    read = 0

    def load_dataset(**arguments: object) -> datasets.IterableDataset:
        asked.append(arguments)
        return datasets.IterableDataset.from_generator(documents)

    def documents() -> Iterator[dict[str, object]]:
        nonlocal read
        for read in range(1, 100):
            yield {"text": f"document {read - 1}", "score": 3.5}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(tables, "_DOCUMENTS", 10)
    for split, expected, taken in (
        (None, range(10), 10),
        ("train[:90%]", range(9), 10),
        ("[90%:]", range(9, 10), 10),
        ("[2:4]", range(2, 4), 10),
        ("[12:14]", range(12, 14), 14),
    ):
        assert load_corpus(name, split).text == "\n\n".join(f"document {n}" for n in expected)
        assert read in (taken, taken + 1)  # `datasets` looks one ahead
    where = {"path": "HuggingFaceFW/fineweb-edu", "name": "sample-10BT", "streaming": True, "split": "train"}
    assert asked == [where] * 5
    with pytest.raises(OptionError, match="text_column='body': fineweb-edu has the columns text, score"):
        load_corpus("fineweb-edu", None, "body")
    with pytest.raises(DataError, match=r"the corpus fineweb-edu is empty in split \[:0\]"):
        load_corpus("fineweb-edu", "[:0]")


def test_a_stream_that_breaks_off_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Iterator[dict[str, str]]:
        yield {"text": "one"}
        raise ConnectionError("the network is gone")

    monkeypatch.setattr(datasets, "load_dataset", lambda **_: datasets.IterableDataset.from_generator(broken))
    with pytest.raises(DataError, match="the dataset fineweb-edu cannot be loaded: the network is gone"):
        load_corpus("fineweb-edu")


def test_damaged_gzip(tmp_path: Path) -> None:
    whole = gzip.compress(bytes(range(256)) * 40, mtime=0)
    for name in ("a.txt.gz", "a.jsonl.gz"):
        for damaged in (whole[:-9], whole[:12] + b"\xff" * 9 + whole[21:], whole[:10]):
            (tmp_path / name).write_bytes(damaged)
            with pytest.raises(DataError, match=f"{name} cannot be read: "):
                load_corpus(str(tmp_path / name))


def test_files_are_read_block_by_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "aä–🙂\r\n" * 7
    for name in ("a.txt", "b.md"):
        (tmp_path / name).write_bytes(text.encode())
    whole = f"{text}\n\n{text}"
    for size in (1, 3, 50):
        monkeypatch.setattr(text_files, "_BLOCK", size)
        assert load_corpus(str(tmp_path)).text == whole
        assert load_corpus(str(tmp_path), "[30:60]").text == whole[30:60]
        assert load_corpus(str(tmp_path), "[50%:]").text == whole[len(whole) // 2 :]
        (tmp_path / "c").write_bytes(text.encode() + b"a\xf0\x9f")
        with pytest.raises(DataError, match=f"c is not UTF-8: byte {len(text.encode()) + 1} cannot be read"):
            load_corpus(str(tmp_path / "c"))


def test_no_more_is_read_than_can_be_tokenized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "LARGEST_TEXT", 10_000)
    monkeypatch.setattr(text_files, "_BLOCK", 1000)
    monkeypatch.setattr(tables, "_LARGEST_UNPACKED", 10_000)
    bomb = gzip.compress(b"a" * 10**6)
    (tmp_path / "a.txt").write_bytes(b"a" * 20_000)
    (tmp_path / "a.txt.gz").write_bytes(bomb)
    (tmp_path / "a.csv").write_bytes(b"text\n" + b"a" * 20_000)
    (tmp_path / "a.csv.gz").write_bytes(bomb)
    for name, line in {
        **dict.fromkeys(("a.txt", "a.txt.gz", "a.csv"), "a.* holds more than 10,000 characters: take a part"),
        "a.csv.gz": "a.csv.gz unpacks to more than 10,000 characters",
    }.items():
        with pytest.raises(DataError, match=line):
            load_corpus(str(tmp_path / name))
    assert load_corpus(str(tmp_path / "a.txt.gz"), "[1%:2%]").text == "a" * 10_000


def test_two_gigabytes_of_one_character_are_never_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "LARGEST_TEXT", 10**6)
    asked: list[int] = []

    def pieces() -> Iterator[str]:
        for number in range(2000):
            asked.append(number)
            yield "a" * 10**6

    with pytest.raises(DataError, match="holds more than 1,000,000 characters"):
        corpus_in_memory(pieces())  # type: ignore[arg-type]
    assert asked == [0, 1]


def test_half_characters(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds half a character, '\\ud800', which no UTF-8 has"):
        corpus_in_memory(["text \ud800"])
    turns = [{"role": "user", "content": "\udc80"}]
    with pytest.raises(DataError, match="holds half a character"):
        corpus_in_memory([turns])


@pytest.mark.parametrize("name", ["a" * 5000, "a\0b", "./" + "a" * 5000, "a" * 5000 + ".txt"])
def test_names_that_no_file_has(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises((DataError, OptionError), match="no such file|cannot be loaded"):
        load_corpus(name)


@pytest.mark.parametrize("name", ["", "builtin,", "sampled,,builtin"])
def test_empty_names(name: str) -> None:
    with pytest.raises(OptionError, match="holds an empty name"):
        load_corpus(name)
