"""Features of a data set, encoded once and kept on disk."""
