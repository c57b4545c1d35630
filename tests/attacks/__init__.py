"""What strangers send, as a table of generators: `python -m tests.attacks` runs it at length."""
