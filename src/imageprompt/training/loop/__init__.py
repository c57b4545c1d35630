"""The training loop: objective, optimiser state, checkpoints, validation."""
