"""Qwen3: names as data, and the classes that pruned checkpoints load as, whose two files travel in them."""

from .family import QWEN3

__all__ = ["QWEN3"]
