"""Measuring what pruning cost in quality."""

from .perplexity import Perplexity, mean_loss, perplexity, windows_of

__all__ = ["Perplexity", "mean_loss", "perplexity", "windows_of"]
