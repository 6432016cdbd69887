"""Measuring what pruning cost in quality."""

from .perplexity import EVALUATION_WINDOW, Perplexity, mean_loss, perplexity, windows_of

__all__ = ["EVALUATION_WINDOW", "Perplexity", "mean_loss", "perplexity", "windows_of"]
