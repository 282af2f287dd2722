"""Attacks over whole data sets: a bank of attacked embeddings that prompts are tuned on, and the threat
levels that they are measured under.

Pictures -> pictures that fool the tower (`bank`), other prompts (`transfers`), other networks (`surrogates`)
or what stands before and behind a defense (`defended`), or all that is known (`strongest`) -> accuracy at a
level (`levels`, `judging`). Finished parts are kept on disk under a digest of all they depend on.
"""
