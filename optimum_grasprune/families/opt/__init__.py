"""OPT: names as data, and the classes that pruned checkpoints load as, whose two files travel in them."""

from .family import OPT

__all__ = ["OPT"]
