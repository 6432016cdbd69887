"""Calibration data."""

from .data import Corpus, corpus_in_memory, load_corpus, sample_sequences, tokenize

__all__ = ["Corpus", "corpus_in_memory", "load_corpus", "sample_sequences", "tokenize"]
