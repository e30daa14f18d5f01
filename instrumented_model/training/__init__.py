"""Data, optimizer, checkpoints, and the training loop."""
