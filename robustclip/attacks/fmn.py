"""The fast minimum-norm attack (Pintor et al. 2021, arXiv 2102.12827): a search for the nearest adversarial
point, not for the worst within a radius.

Deviations: the search stays in a ball that is given; the nearest point that reached the goal is returned, not
the last; a randomized victim draws fresh noise at every step.
"""

import math
from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from robustclip.attacks.base import BallAttack, Options, Search, gradient_of
from robustclip.threat import Linf
from robustclip.types import Cost

MAX_STEPS = 10_000
_GAMMA = (0.05, 0.001)  # by what share the radius shrinks or grows: at the start, at the end
_NO_LENGTH = 1e-12


class FMN(BallAttack):
    """Adapt the radius while climbing: outwards until the goal is reached, then inwards along the boundary.
    Give it a score that raises the margin.

    step  length of the first step in pixel units (Euclidean for both norms), falling to a hundredth of it;
          None: 1/255 a value
    """

    quick: ClassVar[Options] = {"steps": 20}
    kind: Literal["fmn"] = "fmn"
    steps: int = Field(default=60, ge=1, le=MAX_STEPS)
    step: float | None = Field(default=None, gt=0, le=1000, allow_inf_nan=False)

    def passes(self) -> Cost:
        return Cost(self.steps + 1, self.steps)

    def still(self) -> "FMN":
        return self.model_copy(update={"steps": 0})

    def explore(self, search: Search) -> Iterator[None]:
        """No row leaves early, for the nearest point is yet to come; except where the picture itself reaches
        the goal.
        """
        current, limit = search.pixels, search.radii.clone()
        nearest = torch.full_like(limit, torch.inf)
        longest = self.step or math.sqrt(current.shape[1:].numel()) / 255
        for step in range(self.steps + 1):
            final, origin = step == self.steps, search.origin
            distance = self.ball.distance(current, origin)
            seen = search.ask(current, search.streams(f"step-{step}"), grad=not final, rank=-distance)
            reached = seen.margin > 0
            nearest = torch.where(reached, distance.minimum(nearest), nearest)
            if not final:
                falling = 0.5 * (1 + math.cos(math.pi * step / self.steps))
                gamma = _GAMMA[1] + (_GAMMA[0] - _GAMMA[1]) * falling
                gradient = gradient_of(seen)
                limit = self._limit(limit, nearest, distance, reached, seen.margin, gradient, gamma)
                limit = limit.minimum(search.limits)
                length = longest * (0.01 + 0.99 * falling)
                norm = torch.linalg.vector_norm(gradient, dim=(1, 2, 3), keepdim=True)
                along = (gradient / norm.clamp_min(_NO_LENGTH)).nan_to_num(0.0)
                current = self.ball.project(current + length * along, origin, radius=limit)
            stay = search.leave(reached & (distance == 0))
            current, nearest, limit = current[stay], nearest[stay], limit[stay]
            yield

    def _limit(
        self,
        limit: Tensor,
        nearest: Tensor,
        distance: Tensor,
        reached: Tensor,
        margin: Tensor,
        gradient: Tensor,
        gamma: float,
    ) -> Tensor:
        """[B] how far the next point may be: a little nearer than now where the goal is reached, else a
        little farther; before the first success, as far as a linear model says that the goal is.
        """
        flat = gradient.flatten(1)
        slope = flat.abs().sum(dim=1) if isinstance(self.ball, Linf) else flat.norm(dim=1)
        guess = distance + margin.abs() / slope.clamp_min(_NO_LENGTH)
        outwards = torch.where(nearest.isfinite(), limit * (1 + gamma), guess)
        return torch.where(reached, (limit * (1 - gamma)).minimum(nearest), outwards)
