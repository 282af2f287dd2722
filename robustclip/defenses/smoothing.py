"""Randomized smoothing (Cohen et al. 2019, arXiv 1902.02918), the noise of it: what one vote sees. The vote itself is robustclip/smoothing.py."""

from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import Field

from robustclip.defenses.base import PixelDefense, Status
from robustclip.seeds import row_normal
from robustclip.types import Pixels, Seeds

MAX_VOTES = 10_000

Sigma: TypeAlias = Annotated[float, Field(ge=0.001, le=4.0, allow_inf_nan=False)]  # below a quarter of an 8-bit level noise drowns in rounding
Alpha: TypeAlias = Annotated[float, Field(gt=0.0, lt=0.5, allow_inf_nan=False)]


class Smoothing(PixelDefense):
    """clamp(x + sigma e, 0, 1) with e ~ N(0, I), per row. Who serves a chain with this link asks `votes` draws and abstains at level `alpha`.

    It stands first in its chain: the clamp and all links behind it are part of the classifier that is smoothed, which may be any function of x + e,
    so the certificate is about the picture itself. Deviation: the original trains its classifiers on noise; a CLIP has seen none and wants a denoiser
    behind (Salman et al. 2020, arXiv 2003.01908).
    """

    kind: Literal["smoothing"] = "smoothing"
    sigma: Sigma = 0.25
    votes: Annotated[int, Field(ge=1, le=MAX_VOTES)] = 100
    alpha: Alpha = 0.001

    status: ClassVar[Status] = "sound"
    cost: ClassVar[str] = "1 image pass a vote"
    strength: ClassVar[str] = "sigma"

    @property
    def randomized(self) -> bool:
        return True

    def __call__(self, inputs: Pixels, seeds: Seeds) -> Pixels:
        return (inputs + self.sigma * row_normal(seeds, tuple(inputs.shape[1:]), like=inputs)).clamp(0.0, 1.0)
