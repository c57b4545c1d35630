"""Measurements: what an adapter takes from its references, and how good those pictures are."""
