"""The training loop: objective, optimiser state, checkpoints, metrics and validation."""
