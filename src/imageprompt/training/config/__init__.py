"""The keys of a training config, their checks, and how they are read from YAML."""
