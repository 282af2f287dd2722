"""CLIPure-Cos (Zhang et al. 2025, arXiv 2502.18176): rotate an image feature toward an empty text.

That text is "a photo of a .". Deviation: the released code divides its step by a norm over the whole batch,
so rows influence each other. It also turns 88 degrees at a time, overshoots, and comes back every second
step, which removes the gradient: its reported robustness is gradient masking. All its steps lie in the plane
of feature and text. The point that small steps lead to has a closed form, one rotation by a share of the
angle, and that is computed here.

The rotation only changes how much a label's similarity to the empty text weighs against the rest of its
logit. If labels are equally similar to that text, no decision can change. So it is here for comparison, not
as protection. Features are not centred first: a mean subtracted from all logits would change no decision.
"""

from functools import partial
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from robustclip.defenses.base import Bound, Declared, Status, clip_of
from robustclip.models import Clip, Prompts, text_weights
from robustclip.types import Features, ImageEncoder, Seeds, Stage


class ClipureCosine(Declared):
    """Rotate each feature by `share` of its angle to the empty text; 0 changes nothing."""

    kind: Literal["clipure_cosine"] = "clipure_cosine"
    share: float = Field(default=0.25, ge=0.0, le=0.5, allow_inf_nan=False)

    status: ClassVar[Status] = "experimental"
    cost: ClassVar[str] = "1 image pass, and once one text pass"
    strength: ClassVar[str] = "share"

    @property
    def stage(self) -> Stage:
        return "features"

    def bind(self, encoder: ImageEncoder) -> Bound:
        """Costs one text pass."""
        return Bound.of(self, partial(self._purify, empty_text(clip_of(encoder))))

    def _purify(self, text: Tensor, inputs: Features, seeds: Seeds) -> Features:
        return turned(inputs, text.to(inputs), self.share)


def empty_text(clip: Clip) -> Tensor:
    """[E] the unit text feature of a photo of nothing."""
    with torch.inference_mode(False), torch.no_grad():
        return text_weights(clip, Prompts(), ("",))[0]


def turned(features: Features, toward: Tensor, share: float) -> Features:
    """Unit features [B, E] rotated by a share of their angle to the unit vector `toward` [E]."""
    along = features @ toward
    across = features - along[:, None] * toward
    height = (across.square().sum(dim=1) + 1e-24).sqrt()
    angle = (1 - share) * torch.atan2(height, along)  # unlike acos, atan2 has a finite slope at 0
    return angle.cos()[:, None] * toward + (angle.sin() / height)[:, None] * across
