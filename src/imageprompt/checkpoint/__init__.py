"""Adapter files: sources (bytes), formats (layouts), detect (what is it?), and the jobs on them."""
