"""Calibration data."""

from .data import Corpus, load_corpus, sample_sequences, tokenize

__all__ = ["Corpus", "load_corpus", "sample_sequences", "tokenize"]
