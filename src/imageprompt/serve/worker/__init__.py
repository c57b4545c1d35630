"""The worker: a process with one engine, and its supervisor in the server."""
