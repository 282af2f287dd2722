"""Zero-shot classification with CLIP that tells the truth about its robustness.

Imports nothing, so that `robustclip --help` is instant; import the rooms you need (`robustclip.clip`, `robustclip.classifier`, ...).
"""
