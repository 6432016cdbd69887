"""Long texts with numbers hidden in them: several in each, at all depths, and a question for each.

The simplest kind of RULER (arXiv 2404.06654) that has more than one key.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from ..config import NeedleOptions
from ..corpora import Corpus, first_tokens
from ..errors import OptionError

DEPTHS = (0.0, 25.0, 50.0, 75.0, 100.0)
"""How deep in a text needles lie, in percent, unless it is told."""

SHORTEST = 1024
"""Tokens of the shortest text, unless lengths are given; each further one has twice as many."""

INTRODUCTION = "There are secret numbers hidden in the text below. Keep them in mind: they will be asked for.\n\n"
_ADJECTIVES = (
    "amber brave calm daring eager faint gentle hollow ivory jolly keen lively mellow noble odd plain quiet rapid "
    "silent tidy"
)
_NOUNS = (
    "anchor basket candle door engine feather garden hammer island jacket kettle ladder mirror needle orange pencil "
    "river saddle tower window"
)


@dataclass(frozen=True)
class Needle:
    """A number that is hidden. depth: in percent.  key: what it belongs to.  number: seven digits, as in RULER."""

    depth: float
    key: str
    number: str

    @property
    def planted(self) -> str:
        """What is put between two sentences of the text."""
        return f"The secret number of the {self.key} is {self.number}."

    @property
    def question(self) -> str:
        """What follows the text, up to the answer."""
        asked = f"the secret number of the {self.key}"
        return f"\n\nQuestion: What is {asked}?\nAnswer: T{asked[1:]} is"

    @property
    def answer(self) -> str:
        """What a model should go on with."""
        return f" {self.number}"


@dataclass(frozen=True)
class Haystack:
    """A text with needles in it. length: tokens in all at the most.  text: with its introduction."""

    length: int
    text: str
    needles: tuple[Needle, ...]


def lengths_up_to(longest: int) -> tuple[int, ...]:
    """1,024 and its doublings up to what a model reads; that alone where it is less."""
    doubled = (SHORTEST * 2**power for power in itertools.count())
    return tuple(itertools.takewhile(lambda length: length <= longest, doubled)) or (longest,)


def hidden(sentences: Sequence[str], needles: Sequence[Needle]) -> str:
    """The sentences with each needle's before that one of them which its depth points at, or after the last."""
    places = sorted(needles, key=lambda needle: needle.depth)
    parts, taken = [], 0
    for needle in places:
        place = round(len(sentences) * needle.depth / 100)
        parts += [*sentences[taken:place], needle.planted]
        taken = place
    return " ".join([*parts, *sentences[taken:]])


def sentences_of(text: str) -> list[str]:
    """What ends in a full stop, a question or an exclamation mark before white space; each on one line."""
    parts = (" ".join(part.split()) for part in re.split(r"(?<=[.!?])\s+", text))
    return [part for part in parts if part]


def haystacks(
    corpus: Corpus, lengths: Sequence[int], options: NeedleOptions, tokenizer: PreTrainedTokenizerBase
) -> list[Haystack]:
    """`needle_texts` texts of each length, from places of the corpus that the seed draws. OptionError."""
    source = str(options.needles)
    sentences = sentences_of(corpus.text)
    encoded = tokenizer([f" {each}" for each in sentences], add_special_tokens=False)["input_ids"]
    ends = list(itertools.accumulate(map(len, encoded), initial=0))
    found = []
    for length, number in itertools.product(lengths, range(options.needle_texts)):
        drawn = random.Random(f"{options.seed} {length} {number}")
        needles = _needles(options.needle_depths or DEPTHS, drawn)
        room = length - _taken_by(needles, tokenizer)
        if room <= 0:
            taken = f"{len(needles)} numbers and a question alone take {length - room} tokens"
            raise OptionError("needle_lengths", length, taken)
        if ends[-1] < room:
            raise OptionError("needles", source, f"has {ends[-1]:,} tokens, too few for a text of {length:,}")
        starts = sum(ends[-1] - end >= room for end in ends)
        start = drawn.randrange(starts)
        stop = start + sum(end <= ends[start] + room for end in ends[start:]) - 1
        found.append(_fitted(sentences[start:stop], needles, length, tokenizer, source))
    return found


def _needles(depths: Sequence[float], drawn: random.Random) -> tuple[Needle, ...]:
    every = [f"{adjective} {noun}" for adjective in _ADJECTIVES.split() for noun in _NOUNS.split()]
    keys = drawn.sample(every, len(depths))
    return tuple(
        Needle(depth, key, str(drawn.randrange(10**6, 10**7))) for depth, key in zip(depths, keys, strict=True)
    )


def _taken_by(needles: Sequence[Needle], tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens of all that is not text: what a sequence starts with, introduction, needles, the longest question."""
    own = INTRODUCTION + " ".join(needle.planted for needle in needles)
    return len(first_tokens(tokenizer)) + len(ids_of(own, tokenizer)) + _longest_question(needles, tokenizer)


def _longest_question(needles: Sequence[Needle], tokenizer: PreTrainedTokenizerBase) -> int:
    return max(len(ids_of(needle.question + needle.answer, tokenizer)) for needle in needles)


def _fitted(
    sentences: Sequence[str], needles: tuple[Needle, ...], length: int, tokenizer: PreTrainedTokenizerBase, source: str
) -> Haystack:
    """The haystack of as many of the sentences as fit, from the first on: together they may take some tokens more."""
    asked = len(first_tokens(tokenizer)) + _longest_question(needles, tokenizer)
    for count in range(len(sentences), 0, -1):
        text = INTRODUCTION + hidden(sentences[:count], needles)
        if len(ids_of(text, tokenizer)) + asked <= length:
            return Haystack(length, text, needles)
    raise OptionError("needles", source, f"has no sentence at a place that was drawn that fits into {length:,} tokens")


def ids_of(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens of a text alone. What spells a special token in a text stays text."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
