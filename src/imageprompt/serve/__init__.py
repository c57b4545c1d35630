"""The server: an HTTP API and a page on one engine, with a queue and nothing that gets lost."""
