"""The object that users hold, and what it is made of: weights, K'/V' cache, LoRA, attachment."""
