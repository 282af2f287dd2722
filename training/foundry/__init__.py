"""Makes the weights that ship: those of the embedded CLIPs and of the purifying networks."""
