"""Where a checkpoint is served: what fits on a GPU, and dense beside pruned on a real engine."""
