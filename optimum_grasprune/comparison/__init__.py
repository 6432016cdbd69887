"""One model pruned by several methods at several ratios: cells, running them, and their tables."""

from .cells import Cell, cells_of, evaluation_windows, read_corpora
from .run import Comparison
from .tables import failed, points_of, short_table, shown, write_tables

__all__ = [
    "Cell",
    "Comparison",
    "cells_of",
    "evaluation_windows",
    "failed",
    "points_of",
    "read_corpora",
    "short_table",
    "shown",
    "write_tables",
]
