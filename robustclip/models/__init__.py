"""The CLIP and what speaks to it: weights and fingerprint, vocabulary, prompts, prompted towers, the
zero-shot classifier.
"""
