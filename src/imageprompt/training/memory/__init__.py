"""Less memory and time for the frozen base: checkpointing, and attention on the CPU."""
