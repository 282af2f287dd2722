"""Training of the purifying networks: pictures, recipes, the exam, the run, and the command."""
