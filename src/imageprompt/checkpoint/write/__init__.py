"""Adapter files written whole or not at all, with their metadata."""
