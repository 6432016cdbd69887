"""Learnt multipliers on units: hard gates under a budget, then scales."""

from .gates import Gates, frozen, gated, straight_through
from .train import bounded_scale, train_gates, train_scales

__all__ = ["Gates", "bounded_scale", "frozen", "gated", "straight_through", "train_gates", "train_scales"]
