"""The median of a small window (Xu et al. 2018, arXiv 1704.01155, section III-B)."""

from typing import Annotated, ClassVar, Literal, TypeAlias

import torch
from pydantic import AfterValidator, Field
from torch import Tensor
from torch.nn import functional as F

from robustclip.defenses.base import PixelDefense, Status, straight_through
from robustclip.types import Pixels, Seeds


def _odd(window: int) -> int:
    if window % 2 == 0:
        raise ValueError("expected an odd window, which has a middle")
    return window


_LEAK = 0.1

Window: TypeAlias = Annotated[int, Field(ge=1, le=7, description="odd"), AfterValidator(_odd)]


class Median(PixelDefense):
    """Each value becomes the median of the `window` x `window` values around it, borders mirrored.

    `backward` is the gradient that an attacker gets:
    exact  1 for the chosen value, 0 for its neighbors: true almost everywhere, and 0 for every value that no
           window chose (about every second), which raises the flag for zero gradients
    leaky  nine tenths of that, one tenth of the mean's: no value is left out, and PGD breaks at least as many
    """

    kind: Literal["median"] = "median"
    window: Window = 3
    backward: Literal["leaky", "exact"] = "leaky"

    status: ClassVar[Status] = "broken-adaptively"
    cost: ClassVar[str] = "1 image pass"
    strength: ClassVar[str] = "window"

    @property
    def gradient(self) -> str:
        return "exact" if self.backward == "exact" else "surrogate:leaky_median"

    def __call__(self, inputs: Pixels, seeds: Seeds) -> Pixels:
        if self.backward == "exact":
            return self._filter(inputs)
        return straight_through(self._filter, inputs, self._leaky)

    def _filter(self, pixels: Pixels) -> Pixels:
        # Row by row: the windows of a picture take window^2 times its memory.
        medians = [_windows(row, self.window).flatten(-2).median(dim=-1).values for row in pixels.split(1)]
        return torch.cat(medians)

    def _leaky(self, pixels: Pixels) -> Pixels:
        return (1 - _LEAK) * self._filter(pixels) + _LEAK * _windows(pixels, self.window).mean(dim=(-2, -1))


def _windows(pixels: Pixels, window: int) -> Tensor:
    """[B, 3, H, W, window, window] a view of the picture with mirrored borders."""
    return F.pad(pixels, (window // 2,) * 4, mode="reflect").unfold(2, window, 1).unfold(3, window, 1)
