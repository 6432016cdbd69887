"""Learnt multipliers on units, and hard gates under a budget."""

from .gates import Gates, frozen, gated, straight_through
from .train import budget_at, train_gates

__all__ = ["Gates", "budget_at", "frozen", "gated", "straight_through", "train_gates"]
