"""Qwen2: names as data, and the classes that pruned checkpoints load as, whose two files travel in them."""

from .family import QWEN2

__all__ = ["QWEN2"]
