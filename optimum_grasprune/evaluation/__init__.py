"""Measuring what pruning cost in quality."""

from .perplexity import Perplexity, perplexity, windows_of

__all__ = ["Perplexity", "perplexity", "windows_of"]
