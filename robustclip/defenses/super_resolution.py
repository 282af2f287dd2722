"""Super-resolution as a defense (Mustafa et al. 2019, arXiv 1901.01677): denoise, enlarge, shrink back.

The paper's numbers are of attackers who ignore the defense. AdvPT names this defense, too, but its released
code contains the first step only (`wavelet`).
"""

from functools import partial
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from robustclip import purifiers
from robustclip.defenses.base import PixelDefense, Status, straight_through
from robustclip.defenses.wavelet import Wavelet
from robustclip.purifiers.networks import shrunk
from robustclip.types import FREE, Cost, ImageEncoder, Pixels, Seeds, Toll


class SuperResolution(PixelDefense):
    """`wavelet` with its default levels, the x2 network, antialiased bicubic back to the picture's size.

    weights   `own`; the .json of a network of ours; a .safetensors that spandrel knows (its scale is used)
    backward  `exact`: through all of it, the network recomputed in the backward pass. `identity`: BPDA

    Deviations from Mustafa et al.: a small network instead of EDSR, and the picture is shrunk back, since a
    CLIP has one input size.
    """

    kind: Literal["super_resolution"] = "super_resolution"
    sigma: float = Field(default=0.02, ge=0.0, le=0.5, allow_inf_nan=False)
    weights: purifiers.Weights = purifiers.OWN
    backward: Literal["exact", "identity"] = "exact"

    status: ClassVar[Status] = "broken-adaptively"
    cost: ClassVar[str] = "1 image pass and 1 pass of the super-resolver, about 2 image passes of `mini`"
    strength: ClassVar[str] = "sigma"

    @property
    def gradient(self) -> str:
        return "exact" if self.backward == "exact" else "ste"

    @property
    def networks(self) -> tuple[purifiers.NamedNetwork, ...]:
        return (purifiers.NamedNetwork("super_resolver", self.weights),)

    @property
    def toll(self) -> Toll:
        passes = purifiers.PASSES["super_resolver"]
        return Toll(Cost(passes), Cost(passes, passes) if self.backward == "exact" else FREE)

    def bind(self, encoder: ImageEncoder) -> Self:
        """Itself. Raises as `purifiers.load_purifier` if its weights can't be used."""
        purifiers.open_super_resolver(self.weights, like=torch.empty(0))
        return self

    def __call__(self, inputs: Pixels, seeds: Seeds) -> Pixels:
        if self.backward == "identity":
            return straight_through(partial(self._purified, seeds), inputs)
        return self._purified(seeds, inputs)

    def _purified(self, seeds: Seeds, inputs: Pixels) -> Pixels:
        network = purifiers.open_super_resolver(self.weights, like=inputs)
        height, width = inputs.shape[-2:]

        def enlarged_and_back(pixels: Pixels) -> Tensor:
            return shrunk(network(pixels).clamp(0.0, 1.0), height, width).clamp(0.0, 1.0)

        smooth = Wavelet(sigma=self.sigma)(inputs, seeds)
        if torch.is_grad_enabled() and smooth.requires_grad:
            return checkpoint(enlarged_and_back, smooth, use_reentrant=False, preserve_rng_state=False)  # pyright: ignore[reportReturnType]
        return enlarged_and_back(smooth)
