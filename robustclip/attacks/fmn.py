"""The fast minimum-norm attack (Pintor et al. 2021, arXiv 2102.12827): goes for the nearest adversarial point
instead of the worst within a radius.

Deviations: the search stays in a ball that is given; the nearest point that reached the goal is returned, not
the last; a randomized victim draws fresh noise at every step.
"""

import math
from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from robustclip.attacks.base import BestPoints, check_seeds, finished, gradient_of, leaving, pick, radii_of
from robustclip.seeds import derive
from robustclip.threat import BallSpec, Linf
from robustclip.types import Attacked, Cost, Pixels, Score, Seeds

MAX_STEPS = 10_000
_GAMMA = (0.05, 0.001)  # by what share the radius shrinks or grows: at the start, at the end
_NO_LENGTH = 1e-12


class FMN(BaseModel):
    """Adapt the radius while climbing: outwards until the goal is reached, then inwards along the boundary.
    Give it a score that raises the margin.

    step  length of the first step in pixel units (Euclidean for both norms), falling to a hundredth of it;
          None: 1/255 a value
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["fmn"] = "fmn"
    ball: BallSpec
    steps: int = Field(default=60, ge=1, le=MAX_STEPS)
    step: float | None = Field(default=None, gt=0, le=1000, allow_inf_nan=False)

    def __call__(
        self, score: Score, pixels: Pixels, seeds: Seeds, *, radius: Tensor | None = None
    ) -> Attacked:
        """Of each row the nearest point that reached the goal, else the one of largest value. `radius` [B]
        overrides the ball's.
        """
        return finished(self.search(score, pixels, seeds, radius=radius))

    def search(
        self,
        score: Score,
        pixels: Pixels,
        seeds: Seeds,
        *,
        radius: Tensor | None = None,
        teams: Tensor | None = None,
    ) -> Iterator[BestPoints]:
        """Step by step. Nobody leaves early except where the picture itself reaches the goal (with its team):
        the nearest point is yet to come.
        """
        check_seeds(pixels, seeds)
        radii = radii_of(pixels, self.ball.radius, radius)
        steps = self.steps if bool(radii.any()) else 0
        record = BestPoints.of(pixels, points=steps + 1)
        rows = torch.arange(len(pixels), device=pixels.device)
        yield record
        longest = self.step or math.sqrt(pixels.shape[1:].numel()) / 255
        current, nearest = pixels, torch.full_like(radii, torch.inf)
        limit = radii.clone()
        for step in range(steps + 1):
            if not len(rows):
                return
            final = step == steps
            seen = score.select(rows)(current, derive(pick(seeds, rows), f"step-{step}"), grad=not final)
            distance = self.ball.distance(current, pixels[rows])
            record.add(rows, current, seen, step, rank=-distance)
            reached = seen.margin > 0
            nearest = torch.where(reached, distance.minimum(nearest), nearest)
            if not final:
                falling = 0.5 * (1 + math.cos(math.pi * step / steps))
                gamma = _GAMMA[1] + (_GAMMA[0] - _GAMMA[1]) * falling
                gradient = gradient_of(seen)
                limit = self._limit(limit, nearest, distance, reached, seen.margin, gradient, gamma).minimum(
                    radii[rows]
                )
                length = longest * (0.01 + 0.99 * falling)
                along = gradient / torch.linalg.vector_norm(gradient, dim=(1, 2, 3), keepdim=True).clamp_min(
                    _NO_LENGTH
                )
                current = self.ball.project(
                    current + length * along.nan_to_num(0.0), pixels[rows], radius=limit
                )
            stay = ~leaving(reached & (distance == 0), None if teams is None else teams[rows])
            rows, current, nearest, limit = rows[stay], current[stay], nearest[stay], limit[stay]
            yield record

    def bill(self, rows: int) -> Cost:
        """Upper bound for that many rows, if none leaves early and a score costs one pass a row."""
        return Cost(self.steps + 1, self.steps).times(rows)

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
        """[B] how far the next point may be: a little nearer than now, a little farther, or, as long as
        nothing was found, where a linear model ends..

        """
        flat = gradient.flatten(1)
        slope = (flat.abs().sum(dim=1) if isinstance(self.ball, Linf) else flat.norm(dim=1)).clamp_min(
            _NO_LENGTH
        )
        guess = distance + margin.abs() / slope
        outwards = torch.where(nearest.isfinite(), limit * (1 + gamma), guess)
        return torch.where(reached, (limit * (1 - gamma)).minimum(nearest), outwards)
