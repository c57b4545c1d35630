"""Smaller, elsewhere, and known before you start: what a base needs."""
