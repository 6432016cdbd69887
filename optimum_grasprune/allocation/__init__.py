"""Deciding between choices of units by the true loss: candidates against each other, widths against widths."""

from .choose import Judgement, Means, Outcome, choose

__all__ = ["Judgement", "Means", "Outcome", "choose"]
