"""Zero-shot classification with CLIP, and honest measurements of its robustness.

This file imports nothing, so that `robustclip --help` is fast; import the modules that you need.
"""

DEFAULT_BACKBONE = "mini-robust"  # of the service and all commands: one serves what another publishes
