"""What makes the weights that ship: pretraining and hardening the embedded CLIPs, training the purifying
networks.
"""
