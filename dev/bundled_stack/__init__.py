"""Build the bundled stack from scratch: one file per stage; `__main__` runs them all."""
