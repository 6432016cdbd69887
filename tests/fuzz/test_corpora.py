"""Texts and tables that are none, or that no one expects."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import strategies as st

from optimum_grasprune.corpora import corpus_in_memory, tokenize
from optimum_grasprune.corpora.slices import parse_split
from optimum_grasprune.errors import OptionError
from optimum_grasprune.evaluation.texts import read_corpora
from optimum_grasprune.serving.workload import check_prompts
from tests.conftest import make_tokenizer
from tests.fuzz.cases import Fuzz, fuzzed
from tests.fuzz.strategies import damaged, texts, values, words

_LINE = b"The quick brown fox jumps over the lazy dog. "
_CONTENTS = (
    *(b"", b"\n" * 500, b"   \t\r\n" * 80, b"\x00" * 400, bytes(range(32)) * 20, b"\xef\xbb\xbf" + _LINE * 20),
    *(b"\xff\xfe" + "text".encode("utf-16-le") * 90, b"\xed\xa0\x80" * 50, b"\xf0\x9f", _LINE * 40 + b"\xf0\x9f"),
    *(b"a" * 3000, _LINE * 60, "\u202e\u0300\U000e0001".encode() * 90, b"<|endoftext|>" * 90, b"<s></s>" * 90),
)
_JSONL = b"".join(json.dumps({"text": f"A line of text, number {n}.", "n": n}).encode() + b"\n" for n in range(30))
_TALK = [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "So."}]
_CHATS = b"".join(json.dumps({"text": _TALK}).encode() + b"\n" for _ in range(20))
_CSV = b"text,n\n" + b"".join(b'"A line, number %d.",%d\n' % (n, n) for n in range(30))
_slices = st.one_of(
    st.from_regex(r"\A(train|test|)(\[(\d{1,3}%?)?:(\d{1,3}%?)?\])?\Z"),
    st.builds("[{}:{}]".format, words, words),
    words,
)
_ENDINGS = (".txt", ".txt.gz", ".md", "", ".jsonl", ".jsonl.gz", ".json", ".csv", ".csv.gz", ".parquet")


def _parquet(folder: Path) -> bytes:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"text": [f"A line of text, number {n}." for n in range(30)]})
    pyarrow.parquet.write_table(table, folder / "whole.parquet")
    return (folder / "whole.parquet").read_bytes()


@fuzzed(
    600,
    content=st.sampled_from(_CONTENTS) | st.sampled_from(_CONTENTS).flatmap(damaged) | st.binary(max_size=300),
    ending=st.sampled_from(_ENDINGS[:4]),
    packed=st.booleans(),
    data=st.data(),
)
def test_texts(
    fuzz: Fuzz, dense: dict[str, Path], content: bytes, ending: str, packed: bool, data: st.DataObject
) -> None:
    if ending.endswith(".gz") and packed:
        content = gzip.compress(content, mtime=0)
        content = data.draw(st.just(content) | damaged(content))
    with fuzz.case(dense["llama"]) as work:
        (work / f"corpus{ending}").write_bytes(content)
        fuzz.run("evaluate", "-m", "llama", "--dataset", f"./corpus{ending}", "--num-samples", 2, "--seq-len", 16)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # files that pandas leaves open
@fuzzed(400, data=st.data(), ending=st.sampled_from(_ENDINGS[4:]))
def test_tables(fuzz: Fuzz, dense: dict[str, Path], data: st.DataObject, ending: str) -> None:
    with fuzz.case(dense["llama"]) as work:
        whole = {".csv": _CSV, ".parquet": b""}.get(
            ending.removesuffix(".gz"), data.draw(st.sampled_from([_JSONL, _CHATS]))
        )
        whole = whole or _parquet(work)
        rows = st.lists(values, max_size=4).map(
            lambda rows: "\n".join(json.dumps({"text": row}) for row in rows).encode()
        )
        content = data.draw(st.one_of(st.just(whole), damaged(whole), rows, st.sampled_from(_CONTENTS)))
        if ending.endswith(".gz"):
            content = data.draw(st.just(gzip.compress(content, mtime=0)) | damaged(gzip.compress(content, mtime=0)))
        (work / f"corpus{ending}").write_bytes(content)
        column = data.draw(st.sampled_from(["text", "text", "text", "n", ""]))
        split = data.draw(st.none() | _slices)
        options = ["--dataset", f"./corpus{ending}", f"--text-column={column}", "--num-samples", 1, "--seq-len", 16]
        options += [] if split is None else [f"--dataset-split={split}"]
        fuzz.run("evaluate", "-m", "llama", *options)


@fuzzed(800, split=_slices, length=st.integers(0, 10**12))
def test_slices(fuzz: Fuzz, split: str, length: int) -> None:
    with fuzz.case():
        error = fuzz.refused(lambda: parse_split(split, length))
        assert error is None or isinstance(error, OptionError)


@fuzzed(600, entries=st.lists(st.one_of(words, st.builds("{}=corpus.txt{}".format, texts, _slices)), max_size=3))
def test_named_corpora(fuzz: Fuzz, corpus: Path, entries: list[str]) -> None:
    with fuzz.case(corpus):
        fuzz.refused(lambda: read_corpora(entries, "text"))


@fuzzed(300, rows=st.lists(values | texts | words, max_size=4), lazily=st.booleans())
def test_texts_in_memory(fuzz: Fuzz, rows: list[object], lazily: bool) -> None:
    def given() -> Iterator[object]:
        yield from rows

    with fuzz.case():
        fuzz.refused(lambda: tokenize(corpus_in_memory(given() if lazily else rows), make_tokenizer()).windows(2))  # type: ignore[arg-type]


@fuzzed(
    200, content=damaged(b'{"prompt": "a"}\n' * 3) | st.binary(max_size=99) | values.map(json.dumps).map(str.encode)
)
def test_prompts(fuzz: Fuzz, content: bytes) -> None:
    with fuzz.case() as work:
        (work / "prompts.jsonl").write_bytes(content)
        fuzz.refused(lambda: check_prompts(work / "prompts.jsonl"))
