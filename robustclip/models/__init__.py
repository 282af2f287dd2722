"""The CLIP (weights, fingerprint, vocabulary), its prompts, towers with prompts, the zero-shot classifier."""
