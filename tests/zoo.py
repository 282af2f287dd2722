"""The masking zoo: defenses that look strong for a wrong reason, and most of them lie about themselves."""

from typing import ClassVar, Literal

import torch
from torch.nn import functional as F

from robustclip.defenses.base import PixelDefense, Status
from robustclip.seeds import row_normal
from robustclip.types import Pixels, Seeds


class Animal(PixelDefense):
    """A defense that claims an exact gradient."""

    status: ClassVar[Status] = "broken-adaptively"
    cost: ClassVar[str] = "1 image pass"
    strength: ClassVar[str] = "kind"


class HardQuantiser(Animal):
    """Rounds to 16 levels and hands autograd the true derivative: 0."""

    kind: Literal["hard_quantiser"] = "hard_quantiser"

    def __call__(self, inputs: Pixels, seeds: Seeds) -> Pixels:
        return (inputs * 15).round() / 15


class DetachedPurifier(Animal):
    """Smooths where autograd does not look; what autograd sees is mirrored and a thousand times too small."""

    kind: Literal["detached_purifier"] = "detached_purifier"

    def __call__(self, inputs: Pixels, seeds: Seeds) -> Pixels:
        mirrored = 1e-3 * inputs.flip(-1)
        return ((inputs + smoothed(inputs)) / 2).detach() + mirrored - mirrored.detach()


class AnchoredChain(Animal):
    """Ten steps that leave the picture as it is and each gradient a thirty-first of itself: 1e-15 in float32,
    nothing at all in half precision.
    """

    kind: Literal["anchored_chain"] = "anchored_chain"
    half: bool = True

    def __call__(self, inputs: Pixels, seeds: Seeds) -> Pixels:
        picture = inputs.half() if self.half else inputs
        for _ in range(10):
            picture = (picture + 30 * picture.detach()) / 31
        return picture.float()


class Noise(Animal):
    """Adds noise and says so; `frozen`: always the same."""

    kind: Literal["noise"] = "noise"
    frozen: bool = False
    deviation: float = 0.1

    @property
    def randomized(self) -> bool:
        return True

    def __call__(self, inputs: Pixels, seeds: Seeds) -> Pixels:
        own = torch.zeros_like(seeds) if self.frozen else seeds
        return inputs + self.deviation * row_normal(own, tuple(inputs.shape[1:]), like=inputs)


class Optimiser(Animal):
    """Moves the picture down an energy by gradient steps of its own."""

    kind: Literal["optimiser"] = "optimiser"

    def __call__(self, inputs: Pixels, seeds: Seeds) -> Pixels:
        picture = inputs.detach()
        with torch.enable_grad():
            for _ in range(3):
                picture.requires_grad_()
                energy = (picture - smoothed(picture)).square().sum() / 2
                picture = (picture - 0.3 * torch.autograd.grad(energy, picture)[0]).detach()
        return picture


class BatchNormalised(Animal):
    """Subtracts what the pictures of a batch have in common."""

    kind: Literal["batch_normalised"] = "batch_normalised"

    def __call__(self, inputs: Pixels, seeds: Seeds) -> Pixels:
        return inputs - inputs.mean(dim=(0, 2, 3), keepdim=True) / 2


def smoothed(pixels: Pixels) -> Pixels:
    """The mean over 3 x 3 neighbours."""
    return F.avg_pool2d(pixels, 3, stride=1, padding=1, count_include_pad=False)
