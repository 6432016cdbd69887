"""What a pruned model becomes: a checkpoint, written whole or not at all over nothing that it needs, and its card."""
