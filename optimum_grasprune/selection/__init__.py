"""Deciding between choices of units by the true loss: candidates against each other, widths against widths."""

from ..record import Judgement
from .choose import Selected, Started, choose, decide, refit, start

__all__ = ["Judgement", "Selected", "Started", "choose", "decide", "refit", "start"]
