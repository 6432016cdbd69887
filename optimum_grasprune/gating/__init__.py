"""Learnt multipliers on units: hard gates under a budget, then scales."""

from .gates import Gates, frozen, gated, straight_through
from .train import bounded_scale, budget_at, train_gates, train_scales

__all__ = ["Gates", "bounded_scale", "budget_at", "frozen", "gated", "straight_through", "train_gates", "train_scales"]
