"""What is drawn: values that no one expects, documents with some of them, and files that are damaged."""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

NUMBERS: tuple[Any, ...] = (
    *(0, -1, 1, 2, 3, 7, 2**31, -(2**31), 2**53 + 1, 2**63, -(2**63), 10**30, -(10**30), 10**400),
    *(-0.0, 0.5, 1e-320, 1e308, -1e308, float("inf"), float("-inf"), float("nan")),
)
WORDS = (
    *("", " ", "0", "1", "-1", "none", "null", "true", "auto", "cpu", "cuda", "meta", "a\nb", "\t", "\x1b[2J", "\x00"),
    *(
        "../../etc/passwd",
        "/",
        ".",
        "..",
        "~",
        "/dev/null",
        "x" * 5000,
        "é",
        "🙂",
        "\u202e",
        "9" * 5000,
        "1e999",
        "nan",
    ),
    *("llama", "grasp_llama", "mixtral", "sliding_attention", "evil.Evil", "float32", "int8", "--help", "%s", "{}"),
)
_SURROGATES = st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF, categories=["Cs"])

texts = st.one_of(st.sampled_from(WORDS), st.text(max_size=30))
numbers = st.one_of(st.sampled_from(NUMBERS), st.integers(), st.floats())
scalars = st.one_of(st.none(), st.booleans(), numbers, texts)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=8
)
"""Anything that JSON can hold, and NaN."""

words = st.one_of(
    texts.filter(lambda text: "\x00" not in text),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00") | _SURROGATES, max_size=12),
    numbers.map(str).filter(lambda text: len(text) < 5000),
)
"""Words of a command line: no zero bytes, and bytes that are no UTF-8."""


def _nudged(value: Any) -> Any:
    """A value near to one that was meant."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return st.sampled_from([value + 1, value - 1, -value, value * 1000, value / 2, str(value), [value]])
    if isinstance(value, str):
        return st.sampled_from([value[:-1], value + "x", value.upper(), value * 2, [value], f" {value}"])
    if isinstance(value, list):
        return st.sampled_from(
            [value[:-1], value * 2, value[::-1], [value], {str(at): it for at, it in enumerate(value)}]
        )
    if isinstance(value, dict):
        return st.sampled_from(
            [list(value), [value], {**value, "evil": 1}, {f"{name}x": it for name, it in value.items()}]
        )
    return values


@st.composite
def edited(draw: st.DrawFn, document: Any, most: int = 3) -> Any:
    """A JSON document with some values replaced, moved a little, left out or added."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, most))):
        container = document
        while container:
            places: Sequence[Any] = sorted(container) if isinstance(container, dict) else range(len(container))
            key = draw(st.sampled_from(places))
            if not isinstance(container[key], dict | list) or draw(st.booleans()):
                break
            container = container[key]
        if not container:
            continue
        how = draw(st.sampled_from(["replace", "replace", "nudge", "nudge", "remove", "add"]))
        if how == "remove":
            del container[key]
        elif how == "nudge":
            near = _nudged(container[key])
            container[key] = draw(near) if isinstance(near, st.SearchStrategy) else near
        elif how == "add" and isinstance(container, dict):
            container[draw(texts)] = draw(values)
        else:
            container[key] = draw(values)
    return document


@st.composite
def damaged(draw: st.DrawFn, data: bytes, until: int | None = None) -> bytes:
    """A file with some of its bits flipped, with bytes put in or taken out, or cut off. until: where damage ends."""
    content = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        end = min(len(content), until or len(content))
        at = draw(st.integers(0, max(end - 1, 0)))
        how = draw(st.sampled_from(["flip", "flip", "flip", "cut", "put in", "take out", "zero"]))
        if how == "flip" and content:
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "cut":
            del content[at:]
        elif how == "put in":
            content[at:at] = draw(st.binary(min_size=1, max_size=16))
        elif how == "take out":
            del content[at : at + draw(st.integers(1, 64))]
        elif how == "zero":
            content[at : at + 16] = bytes(len(content[at : at + 16]))
    return bytes(content)


def as_json(document: Any) -> bytes:
    """A document as a file; what is no JSON of the standard is written as Python reads it."""
    return json.dumps(document).encode()


NO_JSON = (
    *(b"", b" ", b"{", b"[]", b"null", b"0", b'"text"', b"\xff\xfe", b"\xef\xbb\xbf{}", b"\x00" * 64, b"NaN"),
    *(b"[" * 100_000, b'{"a":' * 100_000, b'{"format": ' + b"9" * 5000 + b"}", b'{"a": 1e99999}', b'{"a": "\\ud800"}'),
)


def json_files(data: bytes) -> st.SearchStrategy[bytes]:
    """A JSON file that is damaged, or holds other values than were meant."""
    document = json.loads(data)
    return st.one_of(
        edited(document).map(as_json), edited(document).map(as_json), damaged(data), st.sampled_from(NO_JSON)
    )


def header_of(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file, and what stands behind it."""
    (size,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def safetensors_files(data: bytes) -> st.SearchStrategy[bytes]:
    """A safetensors file whose header is damaged, or says something else."""
    header, rest = header_of(data)

    def packed(document: Any) -> bytes:
        text = as_json(document)
        return struct.pack("<Q", len(text)) + text + rest

    sizes = st.sampled_from([0, 1, 2**31, 2**63 - 1, 2**64 - 1])
    return st.one_of(
        edited(header).map(packed),
        damaged(data, until=len(data) - len(rest)),
        sizes.map(lambda size: struct.pack("<Q", size) + data[8:]),
        st.sampled_from([b"", data[:7], data[:8], data[: len(data) // 2]]),
    )


def either(*makes: Callable[[], st.SearchStrategy[Any]]) -> st.SearchStrategy[Any]:
    """One of several strategies, each made when it is drawn from."""
    return st.one_of(*(st.deferred(make) for make in makes))
