"""The built-in corpus: English and Python from the running interpreter's own standard library. Nothing is downloaded.

It consists of the language reference that `help()` shows, and of each module's docstrings and the head of its source.
It is split by topic and module into calibration (`train`) and held-out (`test`) text, so that no file is in both.
Modules are parsed, never imported. Another Python version has another library: the checkpoint records the text's hash.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from ..errors import DataError, OptionError

SPLITS = ("train", "test")
_HELD_OUT_SHARE = 0.1
_SOURCE_CHARACTERS = 6_000  # of each file: whole sources would drown the prose
_LEFT_OUT = {"test", "idlelib", "lib2to3", "turtledemo", "pydoc_data", "ensurepip", "encodings"}


def split_of(split: str | None) -> str:
    """The name of the split that a split or slice, as in 'test' or '[:90%]', is of."""
    return (split or "").partition("[")[0] or SPLITS[0]


def standard_library_text(split: str) -> str:
    """The text of one split; OptionError for another name, DataError where Python comes without its sources."""
    if split not in SPLITS:
        raise OptionError("dataset_split", split, f"the builtin corpus has the splits {' and '.join(SPLITS)}")
    documents = [text for name, text in _documents() if is_held_out(name) == (split == "test")]
    if not documents:
        raise DataError("this Python comes without the sources of its standard library; name a --dataset")
    return "\n\n".join(documents)


def is_held_out(name: str) -> bool:
    """Whether a topic or top-level module belongs to the held-out text, by a hash of its name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") < _HELD_OUT_SHARE * 2**64


@cache
def _documents() -> tuple[tuple[str, str], ...]:
    return (*_topics(), *_modules())


def _topics() -> Iterator[tuple[str, str]]:
    if importlib.util.find_spec("pydoc_data") is None:  # some distributions leave it out
        return
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield f"topic {name}", topics[name].strip()


def _modules() -> Iterator[tuple[str, str]]:
    folder = Path(sysconfig.get_path("stdlib"))
    for name in sorted(sys.stdlib_module_names - _LEFT_OUT):
        module, package = folder / f"{name}.py", folder / name
        for file in [module] if module.is_file() else sorted(package.glob("*.py")):
            source = file.read_text(encoding="utf-8", errors="replace")
            yield name, f"{_docstrings(source)}\n\n{source[:_SOURCE_CHARACTERS]}".strip()


def _docstrings(source: str) -> str:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = (node for node in ast.walk(ast.parse(source)) if isinstance(node, documented))
    return "\n\n".join(text for node in nodes if (text := ast.get_docstring(node)))
