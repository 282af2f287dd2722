"""Randomized smoothing: the vote over noisy copies, the certificate about it, and the noise that several
certificates share.
"""
