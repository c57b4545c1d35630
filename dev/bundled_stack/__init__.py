"""Rebuilds the tiny stack from nothing: one file a stage, `__main__` runs them all."""
