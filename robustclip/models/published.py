"""Hardened CLIPs that others have published: how to load them here, and on which terms. Not tried by us.

Repositories and terms as their authors state them, read in November 2026; this list is written by hand.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Hardened:
    """`arch` and `weights` are --backbone and --pretrained; FILE stands for a downloaded checkpoint."""

    name: str
    arch: str
    weights: str
    terms: str
    source: str


HARDENED = (
    *(
        Hardened(name, f"hf-hub:chs20/{repository}", "", "MIT", "Schlarmann et al. 2024, arXiv 2402.12336")
        for name, repository in (
            ("FARE L/14, 2/255", "fare2-clip"),
            ("FARE L/14, 4/255", "fare4-clip"),
            ("TeCoA L/14, 2/255", "tecoa2-clip"),
            ("TeCoA L/14, 4/255", "tecoa4-clip"),
            ("FARE B/16, 4/255", "FARE4-ViT-B-16-laion2B-s34B-b88K"),
            ("FARE ConvNeXt, 4/255", "FARE4-convnext_base_w-laion2B-s13B-b82K-augreg"),
        )
    ),
    *(
        Hardened(f"Delta-CLIP {name}", f"hf-hub:zw123/delta_clip_{tag}", "", "CC BY 4.0", "arXiv 2501.09446")
        for name, tag in (("L/14, 224 px", "l14_224"), ("L/14, 336 px", "l14_336"), ("H/14", "h14_336"))
    ),
    Hardened("QT-AFT B/16, L/14", "ViT-L-14", "openai+FILE", "see its authors", "an image tower alone"),
    Hardened("Sim-CLIP L/14", "ViT-L-14", "openai+FILE", "see its authors", "an image tower alone"),
)
