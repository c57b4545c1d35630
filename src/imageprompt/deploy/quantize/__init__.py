"""quantize: exported denoisers in fewer bits, and what that costs."""
