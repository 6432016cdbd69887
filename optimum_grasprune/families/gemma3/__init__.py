"""Gemma 3: names as data, and the classes that pruned checkpoints load as, whose two files travel in them."""

from .family import GEMMA3

__all__ = ["GEMMA3"]
