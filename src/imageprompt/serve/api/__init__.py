"""The routes of the server's own API."""
