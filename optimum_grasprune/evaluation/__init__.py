"""Measuring what pruning cost in quality."""

from .perplexity import EVALUATION_WINDOW, Perplexity, mean_loss, perplexity, perplexity_of

__all__ = ["EVALUATION_WINDOW", "Perplexity", "mean_loss", "perplexity", "perplexity_of"]
