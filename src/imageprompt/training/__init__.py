"""Training adapters, from a config and a data set to a standard adapter file."""
