"""Phi-3: names as data, and the classes that pruned checkpoints load as, whose two files travel in them."""

from .family import PHI3

__all__ = ["PHI3"]
