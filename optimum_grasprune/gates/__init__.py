"""Hard gates under a budget, and their training."""

from .several import gate_snapshots_at
from .straight_through import straight_through
from .train import Snapshot, gate_kl_weight, gate_learning_rate, gate_snapshots, train_gates

__all__ = [
    "Snapshot",
    "gate_kl_weight",
    "gate_learning_rate",
    "gate_snapshots",
    "gate_snapshots_at",
    "straight_through",
    "train_gates",
]
