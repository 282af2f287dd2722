"""The HTTP routes, one noun a file: each parses a request, calls the engine and answers."""
