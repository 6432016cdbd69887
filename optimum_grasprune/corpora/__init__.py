"""Corpora: where text comes from, and how sequences are drawn from it."""

from .corpus import Conversations, Corpus, Text, corpus_in_memory
from .sequences import FEW_HELD_OUT, TokenizedCorpus, first_tokens, hold_out, sample_sequences, tokenize, windows_of
from .slices import source_and_split
from .sources import load_corpus

__all__ = [
    "FEW_HELD_OUT",
    "Conversations",
    "Corpus",
    "Text",
    "TokenizedCorpus",
    "corpus_in_memory",
    "first_tokens",
    "hold_out",
    "load_corpus",
    "sample_sequences",
    "source_and_split",
    "tokenize",
    "windows_of",
]
