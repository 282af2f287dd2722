"""Zero-shot classification with CLIP that tells the truth about its robustness.

Imports nothing, so that `robustclip --help` is instant; import the rooms you need (`robustclip.models.clip`,
`robustclip.models.classifier`, ...).
"""

DEFAULT_BACKBONE = (
    "mini-robust"  # of the service and of every command, so that what one publishes another serves
)
