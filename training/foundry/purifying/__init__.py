"""Training of the purifying networks: the recipes, the pictures, the exam, the run; the command."""
