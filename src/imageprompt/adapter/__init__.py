"""The Adapter that users hold, and its parts: weights, K'/V' cache, LoRA, attachment."""
