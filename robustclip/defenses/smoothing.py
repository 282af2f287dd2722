"""The noise of randomized smoothing (Cohen et al. 2019, arXiv 1902.02918): what one vote sees.

The vote itself is robustclip/certificates/vote.py.
"""

from typing import Annotated, ClassVar, Literal, Self, TypeAlias

import torch
from pydantic import Field
from torch import Tensor

from robustclip import purifiers
from robustclip.defenses.base import PixelDefense, Status
from robustclip.errors import PurifierRefused
from robustclip.purifiers.networks import Denoiser, one_shot, time_of
from robustclip.seeds import row_normal
from robustclip.types import Cost, ImageEncoder, Pixels, Seeds, Toll

MAX_VOTES = 10_000

# At least a quarter of an 8-bit level: smaller noise disappears in rounding.
Sigma: TypeAlias = Annotated[float, Field(ge=0.001, le=4.0, allow_inf_nan=False)]
Alpha: TypeAlias = Annotated[float, Field(gt=0.0, lt=0.5, allow_inf_nan=False)]


class Smoothing(PixelDefense):
    """clamp(x + sigma e, 0, 1) with e ~ N(0, I), per row.

    A chain with it is served by `votes` draws, and gives no answer if they are not significant at level
    `alpha`.

    It stands first in its chain. The clamp and all defenses behind it belong to the classifier that is
    smoothed, which may be any function of x + e, so the certificate is about the picture itself. Deviation:
    the original trains classifiers on noise; a CLIP was never trained on noise and needs a denoiser.
    `denoise` names its weights (`own`, or the .json of a denoiser of ours). It removes the noise before the
    clamp, in one step from the time at which diffusion has as much noise (Salman et al. 2020, arXiv
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
    def toll(self) -> Toll:
        passes = purifiers.PASSES["denoiser"] if self.denoise else 0
        return Toll(Cost(passes), Cost(0, passes))

    def bind(self, encoder: ImageEncoder) -> Self:
        """Itself. Raises as `purifiers.open_denoiser` if its denoiser can't be used with so much noise."""
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
