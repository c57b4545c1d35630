"""The feature cache: what the frozen models compute of a data set, stored on disk."""
