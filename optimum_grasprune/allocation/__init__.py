"""Deciding between choices of units by the true loss: candidates against each other, widths against widths."""

from .choose import Judgement, Outcome, choose

__all__ = ["Judgement", "Outcome", "choose"]
