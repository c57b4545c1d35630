"""Adapter files: sources (bytes) · formats (layouts) · detect (what is it?) · the jobs on them."""
