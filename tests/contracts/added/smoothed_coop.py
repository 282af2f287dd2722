"""CoOp with label smoothing (Szegedy et al. 2016, arXiv 1512.00567)."""

from typing import Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from robustclip.types import Logits
from training.learning.objectives.text import TextTuning


class SmoothedCoOp(TextTuning):
    """Tune a text context on clean embeddings toward smoothed labels."""

    kind: Literal["smoothed_coop"] = "smoothed_coop"
    smoothing: float = Field(0.1, ge=0, lt=1, description="probability that the targets give to all labels")

    def terms(self, logits: Logits, targets: Tensor) -> dict[str, Tensor]:
        return {"cross_entropy": F.cross_entropy(logits, targets, label_smoothing=self.smoothing)}
