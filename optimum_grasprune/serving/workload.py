"""What is asked of a server: the points of a sweep, each a number of requests of some lengths at some concurrency."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import OptionError
from ..reading import json_of
from .results import PointFacts

_LENGTHS = re.compile(r"(\d+):(\d+)")


@dataclass(frozen=True)
class Lengths:
    """Tokens of a request. prompt: those given, 0 where a file gives the prompts.  output: those generated."""

    prompt: int
    output: int

    @property
    def total(self) -> int:
        """Tokens in the cache when the request ends."""
        return self.prompt + self.output


@dataclass(frozen=True)
class Point:
    """One point of a sweep. prompts: a jsonl file of prompts; None for random tokens of the given lengths."""

    lengths: Lengths
    concurrency: int
    requests: int
    prompts: Path | None = None

    @property
    def workload(self) -> str:
        """Names the lengths, which points of different concurrency share."""
        return f"{self.prompts.name if self.prompts else self.lengths.prompt}:{self.lengths.output}"

    @property
    def name(self) -> str:
        """Names the point in messages and results."""
        return f"{self.workload} × {self.concurrency}"

    def describe(self) -> PointFacts:
        """Its values, for results."""
        prompt = None if self.prompts else self.lengths.prompt
        return PointFacts(self.name, self.workload, prompt, self.lengths.output, self.concurrency, self.requests)


def parse_lengths(text: str) -> Lengths:
    """Lengths given as PROMPT:OUTPUT; OptionError unless there are a token to read and two to generate.

    The time between tokens needs two of them.
    """
    match = _LENGTHS.fullmatch(text)
    if not match or int(match[1]) < 1 or int(match[2]) < 2:
        raise OptionError("lengths", text, "should look like PROMPT:OUTPUT, at least 1 and 2 tokens, as in 128:64")
    return Lengths(int(match[1]), int(match[2]))


def positive(option: str, text: object, least: int = 1) -> int:
    """A whole number given to an option; OptionError when it is none or too small."""
    try:
        value = int(str(text))
    except ValueError:
        raise OptionError(option, text, "should be a whole number") from None
    if value < least:
        raise OptionError(option, text, f"should be at least {least}")
    return value


def sweep(
    lengths: Sequence[Lengths],
    concurrencies: Sequence[int],
    *,
    requests: int | None = None,
    prompts: tuple[Path, int] | None = None,
) -> list[Point]:
    """Every workload at every concurrency, the lowest first.

    requests: at each point; by default 8 for every concurrent one, and at least 16.
    prompts: a file of prompts and the tokens to generate for each, one more workload.
    """
    workloads: list[tuple[Lengths, Path | None]] = [(item, None) for item in lengths]
    if prompts is not None:
        workloads.append((Lengths(0, prompts[1]), prompts[0]))
    return [
        Point(item, concurrency, requests or max(16, 8 * concurrency), file)
        for item, file in workloads
        for concurrency in sorted(set(concurrencies))
    ]


def check_prompts(path: Path) -> None:
    """Raise OptionError unless a file is what vLLM reads: jsonl, a `prompt` on every line."""
    if path.suffix != ".jsonl":
        raise OptionError("prompts", path, "should be a .jsonl file")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError("prompts", path, f"cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not lines:
        raise OptionError("prompts", path, "is empty")
    for number, line in enumerate(lines, start=1):
        if not _holds_prompt(line):
            raise OptionError("prompts", path, f'line {number} should look like {{"prompt": "…"}}')


def _holds_prompt(line: str) -> bool:
    try:
        content = json_of(line)
    except ValueError:
        return False
    return isinstance(content, dict) and isinstance(content.get("prompt"), str) and bool(content["prompt"])
