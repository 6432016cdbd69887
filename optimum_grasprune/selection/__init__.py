"""Deciding between choices of units by the true loss: candidates against each other, widths against widths."""

from ..record import Judgement
from .choose import Choice, Selected, choose, decide, start

__all__ = ["Choice", "Judgement", "Selected", "choose", "decide", "start"]
