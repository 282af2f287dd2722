"""Pretraining the embedded backbone: the recipe, the run."""
