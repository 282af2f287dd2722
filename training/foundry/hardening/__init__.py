"""Adversarial fine-tuning of image towers: the losses and the attack, the recipes, the pictures, the checks,
the run; the command.
"""
