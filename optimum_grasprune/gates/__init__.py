"""Hard gates under a budget, and their training."""

from .several import train_gates_at
from .straight_through import straight_through
from .train import gate_learning_rate, train_gates

__all__ = ["gate_learning_rate", "straight_through", "train_gates", "train_gates_at"]
