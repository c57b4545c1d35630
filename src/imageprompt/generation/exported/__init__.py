"""Exported bases: what `imageprompt export` writes, and denoisers that a runtime computes."""
