"""Offline: learn prompts, measure them, publish them. Knows data sets and files; serving knows none of it."""
