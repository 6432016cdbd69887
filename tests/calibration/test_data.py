from __future__ import annotations

import ast
import gzip
import importlib
import inspect
import json
from pathlib import Path

import datasets
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from optimum_grasprune.calibration import corpus_in_memory, hold_out, load_corpus, sample_sequences, tokenize
from optimum_grasprune.calibration.data import mixed
from optimum_grasprune.calibration.standard_library import is_held_out
from optimum_grasprune.config import CalibrationOptions
from optimum_grasprune.errors import DataError, OptionError


def sequences(corpus: int, *, num_samples: int | None, seq_len: int, seed: int = 0) -> torch.Tensor:
    return sample_sequences(torch.arange(corpus), CalibrationOptions(num_samples=num_samples), seq_len, seed)


def test_sequences_are_seeded_random_and_contiguous() -> None:
    drawn = sequences(1000, num_samples=20, seq_len=10)
    assert drawn.shape == (20, 10)
    assert torch.equal(drawn - drawn[:, :1], torch.arange(10).expand(20, 10))
    assert torch.equal(drawn, sequences(1000, num_samples=20, seq_len=10))
    assert not torch.equal(drawn, sequences(1000, seed=1, num_samples=20, seq_len=10))
    assert drawn[:, 0].tolist() != sorted(drawn[:, 0].tolist())


def test_one_pass_covers_the_corpus_before_anything_repeats() -> None:
    drawn = sequences(1000, num_samples=99, seq_len=10)
    assert len(set(drawn[:, 0].tolist())) == 99
    assert drawn.unique().numel() == 990


def test_more_sequences_than_blocks_are_cut_anew() -> None:
    drawn = sequences(105, num_samples=25, seq_len=10)
    assert drawn.shape == (25, 10)
    assert len({start % 10 for start in drawn[:, 0].tolist()}) > 1


@pytest.mark.parametrize(("seq_len", "number"), [(512, 256), (256, 512), (1000, 131), (200_000, 1)])
def test_as_many_sequences_as_the_tokens_make(seq_len: int, number: int) -> None:
    assert sequences(300_000, num_samples=None, seq_len=seq_len).shape == (number, seq_len)


def test_corpus_of_exactly_one_sequence() -> None:
    assert sequences(10, num_samples=1, seq_len=10).tolist() == [list(range(10))]


def test_too_short_corpus_is_an_error() -> None:
    with pytest.raises(DataError, match="has 9 tokens, less than one sequence of 10"):
        sequences(9, num_samples=1, seq_len=10)


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
    assert len(tokenize(corpus, tokenizer)) >= len(corpus.text)  # one token per byte, and no special ones


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
    assert [call["split"] for call in asked] == ["train[:5000]" if "c4" in name else "train", "validation"]
    assert asked[0]["path"] == ("allenai/c4" if "c4" in name else "Salesforce/wikitext")


def test_several_corpora_are_mixed_in_equal_parts(tmp_path: Path) -> None:
    for name, letter, length in (("a.txt", "a", 6400), ("b.txt", "b", 90_000)):
        (tmp_path / name).write_text(letter * length)
    corpus = load_corpus(f"{tmp_path / 'a.txt'},{tmp_path / 'b.txt'}")
    assert corpus.text.count("a") == corpus.text.count("b") == 6400
    tail = corpus.text[-400:]  # what would be held out
    assert "a" in tail and "b" in tail


def test_mixing_by_hand() -> None:
    assert mixed(["abcd", "123456"], pieces=2) == "ab\n\n12\n\ncd\n\n34"


def test_held_out_sequences_are_the_end_and_at_most_an_eighth() -> None:
    tokens = torch.arange(100)
    rest, held_out = hold_out(tokens, 2, 5)
    assert rest.tolist() == list(range(90)) and held_out.tolist() == [list(range(90, 95)), list(range(95, 100))]
    rest, held_out = hold_out(tokens, 16, 5)
    assert held_out.shape == (2, 5)
    rest, held_out = hold_out(tokens, 16, 20)
    assert torch.equal(rest, tokens) and held_out.shape == (0, 20)


def test_no_sequence_twice_even_where_the_corpus_holds_just_enough() -> None:
    drawn = sequences(20, num_samples=16, seq_len=5)
    assert len({tuple(row) for row in drawn.tolist()}) == 16
    with pytest.raises(OptionError, match="has 20 tokens, which hold only 16 different sequences of 5"):
        sequences(20, num_samples=17, seq_len=5)
