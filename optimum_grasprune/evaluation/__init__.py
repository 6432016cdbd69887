"""Measuring what pruning cost in quality."""

from .perplexity import EVALUATION_WINDOW, Perplexity, mean_loss, perplexity

__all__ = ["EVALUATION_WINDOW", "Perplexity", "mean_loss", "perplexity"]
