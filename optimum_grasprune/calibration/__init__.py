"""Calibration data, and statistics of what the model makes of them."""

from .collect import collect_moments, inputs_of
from .data import Corpus, corpus_in_memory, hold_out, load_corpus, sample_sequences, tokenize
from .sensitivity import sensitivity, squared_per_sequence, squared_per_token
from .statistics import Moments

__all__ = [
    "Corpus",
    "Moments",
    "collect_moments",
    "corpus_in_memory",
    "hold_out",
    "inputs_of",
    "load_corpus",
    "sample_sequences",
    "sensitivity",
    "squared_per_sequence",
    "squared_per_token",
    "tokenize",
]
