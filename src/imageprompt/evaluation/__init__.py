"""Measures what an adapter and its reference pictures bring across."""
