"""Training of the purifying networks: recipes, pictures and the exam, the run, and the command."""
