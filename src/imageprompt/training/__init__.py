"""Training adapters: the objective, the loop and crash-safe state."""
