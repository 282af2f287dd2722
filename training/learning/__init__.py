"""Prompt learning: objectives, and the loop that tunes prompts by them."""
