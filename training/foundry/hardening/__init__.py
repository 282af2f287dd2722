"""Adversarial fine-tuning of image towers: losses, attack, recipes, checks, the run, and the command."""
