"""Randomized smoothing (Cohen et al. 2019, arXiv 1902.02918), the noise of it: what one vote sees. The vote
itself is robustclip/certificates/vote.py.
"""

from typing import Annotated, ClassVar, Literal, Self, TypeAlias

import torch
from pydantic import Field
from torch import Tensor

from robustclip import purifiers
from robustclip.defenses.base import PixelDefense, Status
from robustclip.errors import PurifierRefused
from robustclip.purifiers.denoiser import Denoiser
from robustclip.purifiers.diffusion import one_shot, time_of
from robustclip.seeds import row_normal
from robustclip.types import Cost, ImageEncoder, Pixels, Seeds

MAX_VOTES = 10_000

Sigma: TypeAlias = Annotated[
    float, Field(ge=0.001, le=4.0, allow_inf_nan=False)
]  # below a quarter of an 8-bit level noise drowns in rounding
Alpha: TypeAlias = Annotated[float, Field(gt=0.0, lt=0.5, allow_inf_nan=False)]


class Smoothing(PixelDefense):
    """clamp(x + sigma e, 0, 1) with e ~ N(0, I), per row. Who serves a chain with this link asks `votes`
    draws and abstains at level `alpha`.

    It stands first in its chain: the clamp and all links behind it are part of the classifier that is
    smoothed, which may be any function of x + e, so the certificate is about the picture itself. Deviation:
    the original trains its classifiers on noise; a CLIP has seen none and wants a denoiser behind. `denoise`
    names the weights of one (`own`, or the .json of a denoiser of ours) that takes the noise away before the
    clamp, in one step from the time at which diffusion has as much of it (Salman et al. 2020, arXiv
    2003.01908; Carlini et al. 2023, arXiv 2206.10550).
    """

    kind: Literal["smoothing"] = "smoothing"
    sigma: Sigma = 0.25
    votes: Annotated[int, Field(ge=1, le=MAX_VOTES)] = 100
    alpha: Alpha = 0.001
    denoise: purifiers.Weights | None = None

    status: ClassVar[Status] = "sound"
    cost: ClassVar[str] = "1 image pass a vote"
    strength: ClassVar[str] = "sigma"

    @property
    def randomized(self) -> bool:
        return True

    @property
    def networks(self) -> tuple[purifiers.NamedNetwork, ...]:
        return () if self.denoise is None else (purifiers.NamedNetwork("denoiser", self.denoise),)

    @property
    def passes(self) -> Cost:
        return Cost(purifiers.PASSES["denoiser"] if self.denoise else 0)

    @property
    def gradient_passes(self) -> Cost:
        return Cost(0, self.passes.forward)

    def bind(self, encoder: ImageEncoder) -> Self:
        """Itself. Raises as `purifiers.open_denoiser` for one that can't be used, or not for so much
        noise.
        """
        if self.denoise is not None:
            try:
                self._denoiser(self.denoise, torch.empty(0))
            except PurifierRefused as error:
                error.field = "denoise"
                raise
        return self

    def __call__(self, inputs: Pixels, seeds: Seeds) -> Pixels:
        noisy = inputs + self.sigma * row_normal(seeds, tuple(inputs.shape[1:]), like=inputs)
        if self.denoise is not None:
            noisy = one_shot(self._denoiser(self.denoise, inputs), noisy, self.sigma)
        return noisy.clamp(0.0, 1.0)

    def _denoiser(self, weights: str, like: Tensor) -> Denoiser:
        return purifiers.open_denoiser(weights, like=like, time=time_of(self.sigma))
