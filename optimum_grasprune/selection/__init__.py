"""Deciding between choices of units by the true loss: candidates against each other, widths against widths."""

from .choose import Judgement, Selected, choose

__all__ = ["Judgement", "Selected", "choose"]
