"""Measuring prompt sets: evaluation, certificates, campaigns over many of them, and the pages that show the
results.
"""
