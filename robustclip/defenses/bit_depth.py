"""Fewer levels a channel (Xu et al. 2018, arXiv 1704.01155, section III-A)."""

from typing import ClassVar, Literal

from pydantic import Field

from robustclip.defenses.base import PixelDefense, Status, straight_through
from robustclip.types import Pixels, Seeds


class BitDepth(PixelDefense):
    """Round to 2^bits levels. Rounding has gradient 0, so an attacker gets the identity's gradient.

    Athalye et al. 2018 (arXiv 1802.00420) break the family this way.
    """

    kind: Literal["bit_depth"] = "bit_depth"
    bits: int = Field(default=4, ge=1, le=8)

    status: ClassVar[Status] = "broken-adaptively"
    cost: ClassVar[str] = "1 image pass"
    strength: ClassVar[str] = "bits"

    @property
    def gradient(self) -> str:
        return "ste"

    def __call__(self, inputs: Pixels, seeds: Seeds) -> Pixels:
        steps = 2**self.bits - 1
        return straight_through(lambda pixels: (pixels * steps).round() / steps, inputs)
