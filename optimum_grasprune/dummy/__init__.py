"""Checkpoints of real sizes with random weights: right for speed and memory, meaningless for quality."""

from .profiles import Shares, chosen_mask, profile, shares_of, uniform_mask
from .shapes import SHAPES, dummy_tokenizer, shape_config
from .write import Dummy, is_replaceable, write_dummy

__all__ = [
    "SHAPES",
    "Dummy",
    "Shares",
    "chosen_mask",
    "dummy_tokenizer",
    "is_replaceable",
    "profile",
    "shape_config",
    "shares_of",
    "uniform_mask",
    "write_dummy",
]
