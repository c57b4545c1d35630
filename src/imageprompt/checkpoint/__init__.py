"""Adapter files: storage (bytes to tensors) · formats (layouts) · detect (what is it?)."""
