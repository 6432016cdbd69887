"""Ministral: names as data, and the classes that pruned checkpoints load as, whose two files travel in them."""

from .family import MINISTRAL

__all__ = ["MINISTRAL"]
