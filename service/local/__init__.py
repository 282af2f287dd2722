"""The commands that decide on this machine, without a server: classify, probe, certify, replay."""
