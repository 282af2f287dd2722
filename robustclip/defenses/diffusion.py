"""Diffusion as a purifier, DiffPure (Nie et al. 2022, arXiv 2205.07460): add noise, then denoise.

Its published robustness fell when attackers differentiated through every step and averaged over draws (Lee &
Kim 2023, arXiv 2303.09051). That gradient is the default here. Noise comes from row seeds: noise fixed for
all pictures would mask gradients.
"""

from functools import partial
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field

from robustclip import purifiers
from robustclip.defenses.base import PixelDefense, Status, straight_through, unchanged
from robustclip.purifiers.networks import diffused, restored
from robustclip.seeds import row_normal
from robustclip.types import Cost, ImageEncoder, Pixels, Seeds, Toll


class Diffusion(PixelDefense):
    """Add the noise of a time (0 none, 1 nothing else), then go back in `steps` DDIM steps; per row.

    weights   `own`, or the .json of a denoiser of ours
    backward  `exact`: through every step, recomputed in the backward pass. `one_shot`: through one step from
              the same noise. `identity`: BPDA

    Deviations from DiffPure: a few deterministic DDIM steps for its hundred stochastic ones, since below time
    0.1 more steps hardly change a picture; exact gradients by checkpoints instead of an adjoint equation.
    """

    kind: Literal["diffusion"] = "diffusion"
    time: float = Field(default=0.1, ge=0.0, le=1.0, allow_inf_nan=False)
    steps: int = Field(default=5, ge=1, le=100)
    weights: purifiers.Weights = purifiers.OWN
    backward: Literal["exact", "one_shot", "identity"] = "exact"

    status: ClassVar[Status] = "experimental"
    cost: ClassVar[str] = "1 image pass and 5 passes of the denoiser, about 3 image passes of `mini` each"
    strength: ClassVar[str] = "time"

    @property
    def randomized(self) -> bool:
        return self.time > 0

    @property
    def gradient(self) -> str:
        return {"exact": "exact", "one_shot": "surrogate:one_shot", "identity": "ste"}[self.backward]

    @property
    def networks(self) -> tuple[purifiers.NamedNetwork, ...]:
        return (purifiers.NamedNetwork("denoiser", self.weights),)

    @property
    def toll(self) -> Toll:
        step = purifiers.PASSES["denoiser"] if self.time else 0
        again = step * {"exact": self.steps, "one_shot": 1, "identity": 0}[self.backward]
        return Toll(Cost(step * self.steps), Cost(again, again))

    def bind(self, encoder: ImageEncoder) -> Self:
        """Itself. Raises as `purifiers.open_denoiser` if its weights can't be used."""
        purifiers.open_denoiser(self.weights, like=torch.empty(0), time=self.time)
        return self

    def __call__(self, inputs: Pixels, seeds: Seeds) -> Pixels:
        if self.time == 0:
            return inputs
        network = purifiers.open_denoiser(self.weights, like=inputs, time=self.time)
        noise = row_normal(seeds, tuple(inputs.shape[1:]), like=inputs).to(inputs.dtype)

        def back(pixels: Pixels, steps: int) -> Pixels:
            return restored(network, diffused(pixels, noise, self.time), self.time, steps=steps).clamp(
                0.0, 1.0
            )

        if self.backward == "exact":
            return back(inputs, self.steps)
        return straight_through(
            partial(back, steps=self.steps),
            inputs,
            partial(back, steps=1) if self.backward == "one_shot" else unchanged,
        )
