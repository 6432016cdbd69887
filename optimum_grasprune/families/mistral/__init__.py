"""Mistral: names as data, and the classes that pruned checkpoints load as, whose two files travel in them."""

from .family import MISTRAL

__all__ = ["MISTRAL"]
