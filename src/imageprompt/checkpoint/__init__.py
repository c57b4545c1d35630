"""Adapter files: read (bytes), formats (layouts), identify, inspect, validate, convert, diff."""
