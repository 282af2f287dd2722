"""The HTTP routes, one noun a file: each parses, asks the engine, answers."""
