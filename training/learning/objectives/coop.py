"""CoOp (Zhou et al. 2022, arXiv 2109.01134), as the control of AdvPT: the same tuning on clean embeddings.

Deviations: no augmentation (the bank has one embedding a picture), AdvPT's 32 vectors and schedule.
"""

from typing import Literal

from training.learning.objectives.text import TextTuning


class CoOp(TextTuning):
    """Tune a text context on clean embeddings."""

    kind: Literal["coop"] = "coop"
