"""Pretraining the embedded backbone: pictures, texts and teachers become a corpus, which the run learns from
by the recipe; the command.
"""
