"""CLIPure-Cos (Zhang et al. 2025, arXiv 2502.18176): turn an image feature toward the text of "a photo of a
.", which names nothing. Done right.

The released code divides its step by a norm over the whole batch, so that a row hangs on its batch mates, and
turns 88 degrees at a time, so that it overshoots, comes back every second step, and leaves nothing of the
gradient: masking, which is where its numbers come from. All its steps lie in the plane of feature and text.
So the place where small steps lead is known in closed form, one turn by a share of the angle, and that is
what runs here.

Algebra says what to expect. Of a label's logit the turn changes how much its likeness to the empty text
weighs against all else: where labels are equally alike to that text, no decision can change. It is offered as
a yardstick.
"""

from functools import partial
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from robustclip.defenses.base import Bound, Declared, Status, clip_of
from robustclip.models.classifier import text_weights
from robustclip.models.clip import Clip
from robustclip.models.prompts import Prompts
from robustclip.types import Features, ImageEncoder, Seeds, Stage


class ClipureCosine(Declared):
    """Turn each feature by `share` of its angle to the empty text; 0 changes nothing. Deviations from the
    source: see above.
    """

    kind: Literal["clipure_cosine"] = "clipure_cosine"
    share: float = Field(default=0.25, ge=0.0, le=0.5, allow_inf_nan=False)

    status: ClassVar[Status] = "experimental"
    cost: ClassVar[str] = "1 image pass, and once one text pass"
    strength: ClassVar[str] = "share"

    @property
    def stage(self) -> Stage:
        return "features"

    def bind(self, encoder: ImageEncoder) -> Bound:
        """Costs a text pass."""
        return Bound(self, partial(self._purify, empty_text(clip_of(encoder))))

    def _purify(self, text: Tensor, inputs: Features, seeds: Seeds) -> Features:
        return turned(inputs, text.to(inputs), self.share)


def empty_text(clip: Clip) -> Tensor:
    """[E] the unit text feature of a photo of nothing."""
    with torch.inference_mode(False), torch.no_grad():
        return text_weights(clip, Prompts(), ("",))[0]


def turned(features: Features, toward: Tensor, share: float) -> Features:
    """Unit features [B, E] turned by a share of their angle to the unit vector `toward` [E], within the plane
    of the two; exact gradient.
    """
    along = features @ toward
    across = features - along[:, None] * toward
    height = (across.square().sum(dim=1) + 1e-24).sqrt()
    angle = (1 - share) * torch.atan2(height, along)  # unlike acos it has a slope at 0
    return angle.cos()[:, None] * toward + (angle.sin() / height)[:, None] * across
