"""Studies: pictures of adapters at several scales, with their metrics, one line for each."""
