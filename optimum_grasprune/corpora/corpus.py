"""What a corpus is: running text or conversations, of one source or of several that are mixed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..errors import DataError

_DOCUMENT_END = "<|endoftext|>"
# ShareGPT's names beside those of chat templates.
_KEYS = (("role", "content"), ("from", "value"))
_ROLES = {"human": "user", "gpt": "assistant"}

LARGEST_TEXT = 2**28
"""Characters of the longest corpus: tokenizing holds up to two hundred bytes for each."""

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Text:
    """Running text. What spells a special token in it is text like any other."""

    content: str
    has_special_tokens = False

    @property
    def characters(self) -> int:
        """Length of the text."""
        return len(self.content)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing but white space."""
        return not self.content.strip()

    def rendered(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """The text itself, whatever the tokenizer."""
        return self.content


@dataclass(frozen=True)
class Conversations:
    """Messages by turns, each with at least `role` and `content`; the tokenizer's chat template makes text of them."""

    conversations: tuple[tuple[Message, ...], ...]
    has_special_tokens = True

    @property
    def content(self) -> str:
        """All messages as JSON, a conversation on a line: what they are identified by."""
        return "\n".join(
            json.dumps(messages, ensure_ascii=False, sort_keys=True, default=str) for messages in self.conversations
        )

    @property
    def characters(self) -> int:
        """Length of all messages, without what the template puts around them."""
        return sum(len(str(message["content"])) for messages in self.conversations for message in messages)

    @property
    def is_empty(self) -> bool:
        """Whether no message says anything."""
        return not self.characters

    def rendered(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """One conversation after another as the template writes them; DataError where there is none that can."""
        if not getattr(tokenizer, "chat_template", None):
            raise DataError("the corpus holds conversations, and the tokenizer has no chat template to write them with")
        try:
            return "".join(
                str(tokenizer.apply_chat_template([dict(message) for message in messages], tokenize=False))
                for messages in self.conversations
            )
        except Exception as error:  # a template raises what it likes: Jinja's errors, TypeErrors, its own
            raise DataError(f"the tokenizer's chat template refuses a conversation of the corpus: {error}") from None


Part = Text | Conversations


@dataclass(frozen=True)
class Corpus:
    """Texts and where they are from.

    parts: one for each source, by its name; several are mixed in equal numbers of sequences.
    source: as the user named it.  split: as the user named it, or None.
    """

    parts: Mapping[str, Part]
    source: str
    split: str | None

    @property
    def text(self) -> str:
        """The whole content; of several parts one after another."""
        return "\n\n".join(part.content for part in self.parts.values())

    @property
    def sha256(self) -> str:
        """Hash of the content in UTF-8."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """What a checkpoint records of the corpus it was calibrated on."""
        characters = sum(part.characters for part in self.parts.values())
        return {"source": self.source, "split": self.split, "characters": characters, "sha256": self.sha256}


def check_size(characters: int, name: str) -> None:
    """Raise DataError for more text than can be tokenized at once. name: of the corpus."""
    if characters > LARGEST_TEXT:
        raise DataError(
            f"the corpus {name} holds more than {LARGEST_TEXT:,} characters: take a part of it, as in "
            "--dataset-split '[:1%]'"
        )


def text_of(content: str) -> Text:
    """Running text; `<|endoftext|>` between documents becomes a newline, since most tokenizers know no such token."""
    return Text(content.replace(_DOCUMENT_END, "\n"))


def part_of(rows: Iterable[Any], name: str) -> Part:
    """Rows of a table, or strings in memory, as text or as conversations. Rows that are None are left out.

    name: of the corpus, in messages. A conversation is a list of messages with `role` and `content`, or with `from` and
    `value`. Raises DataError, with the type, on anything else.
    """
    values, size = [], 0
    for value in rows:
        if value is not None:
            values.append(value)
            size += len(value) if isinstance(value, str) else 0
            check_size(size, name)
    if values and _is_conversation(values[0]):
        return _encodable(Conversations(tuple(_conversation(value, name) for value in values)), name)
    for value in values:
        if not isinstance(value, str):
            raise DataError(f"{name} holds {_type_of(value)} where text or conversations are wanted")
    return _encodable(text_of("\n\n".join(values)), name)


def corpus_in_memory(texts: Sequence[Any]) -> Corpus:
    """A corpus of strings, or of conversations; DataError when there is nothing in them."""
    name = "the list of calibration texts"
    part = part_of([texts] if isinstance(texts, str) else texts, name)
    if part.is_empty:
        raise DataError("the texts given for calibration are empty")
    return Corpus({name: part}, "in memory", None)


def _encodable(part: Part, name: str) -> Part:
    """The part itself; DataError where it holds what is no character, as Python's strings may."""
    try:
        part.content.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{name} holds half a character, {error.object[error.start]!r}, which no UTF-8 has") from None
    return part


def _is_conversation(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and _keys_of(value[0]) is not None


def _keys_of(message: Any) -> tuple[str, str] | None:
    """Names of the role and of the content in a message; None for what is no message."""
    if not isinstance(message, Mapping):
        return None
    return next((keys for keys in _KEYS if all(message.get(key) is not None for key in keys)), None)


def _conversation(value: Any, name: str) -> tuple[Message, ...]:
    if not _is_conversation(value):
        raise DataError(f"{name} holds {_type_of(value)} among its conversations")
    messages = []
    for message in value:
        keys = _keys_of(message)
        if keys is None:
            raise DataError(f"{name} holds a conversation with a message that has no role or no content")
        role, content = (message[key] for key in keys)
        # A table gives every message the fields of all of them; those that it did not have are None there.
        others = {key: item for key, item in message.items() if key not in keys and item is not None}
        messages.append({"role": _ROLES.get(role, role), "content": content, **others})
    return tuple(messages)


def _type_of(value: Any) -> str:
    """What a value is, in words: int, list of int."""
    name = type(value).__name__
    return f"{name} of {_type_of(value[0])}" if isinstance(value, list | tuple) and value else name
