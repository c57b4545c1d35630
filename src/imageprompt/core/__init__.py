"""Nouns and small tools without models: specs, errors, files on disk, the Hub, the console."""
