"""Pretraining of the embedded backbone: captions, recipe, checks, the run, and the command."""
