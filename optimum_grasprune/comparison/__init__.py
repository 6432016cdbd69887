"""One model pruned by several methods at several ratios: cells, running them, and their tables."""

from ..evaluation.texts import read_corpora
from .cells import Cell, cells_of, evaluation_texts, evaluation_windows
from .page import write_page
from .results import ComparisonResult
from .run import Comparison
from .shards import Shard
from .tables import points_of, short_table, shown, write_tables

__all__ = [
    "Cell",
    "Comparison",
    "ComparisonResult",
    "Shard",
    "cells_of",
    "evaluation_texts",
    "evaluation_windows",
    "points_of",
    "read_corpora",
    "short_table",
    "shown",
    "write_page",
    "write_tables",
]
