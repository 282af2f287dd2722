"""Auto-PGD (Croce & Hein 2020, arXiv 2003.01690, algorithm 1): gradient ascent with momentum that halves its
own step where a row stops rising.

Deviations from the authors' code: the value before the first step is that of the start point, not 0; the
first step is twice the radius for L2 too; a row that reached its goal leaves the batch; of the points that
reached it the one of the largest margin is kept; the last point needs no gradient.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from robustclip.attacks.base import BestPoints, check_seeds, finished, gradient_of, leaving, pick, radii_of
from robustclip.seeds import derive
from robustclip.threat import BallSpec
from robustclip.types import Attacked, Cost, Pixels, Score, Seeds

MAX_STEPS = 10_000
MAX_RESTARTS = 100
_MOMENTUM = 0.75  # share of the new direction in every move but the first


class APGD(BaseModel):
    """Climb without a step length to choose, from random starts.

    share     a row whose value rose in at most this share of the steps since the last checkpoint halves its
              step
    restarts  random starts, one after the other
    stop      `broken`: a row that reached its goal leaves for good; `never`: every row takes all steps, to
              find its worst point
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["apgd"] = "apgd"
    ball: BallSpec
    steps: int = Field(default=100, ge=1, le=MAX_STEPS)
    share: float = Field(default=0.75, gt=0, lt=1)
    restarts: int = Field(default=1, ge=1, le=MAX_RESTARTS)
    stop: Literal["broken", "never"] = "broken"

    def __call__(
        self, score: Score, pixels: Pixels, seeds: Seeds, *, radius: Tensor | None = None
    ) -> Attacked:
        """Attack every row by itself; `radius` [B] overrides the ball's. Raises InvalidInput for a score that
        offers no gradient.
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
        """Step by step; `teams` [B]: rows of a team leave together."""
        check_seeds(pixels, seeds)
        radii = radii_of(pixels, self.ball.radius, radius)
        steps, restarts = (self.steps, self.restarts) if bool(radii.any()) else (0, 1)
        record = BestPoints.of(pixels, points=restarts * (steps + 1))
        rows = torch.arange(len(pixels), device=pixels.device)
        yield record
        for restart in range(restarts):
            start = self.ball.sample(
                pixels[rows], derive(pick(seeds, rows), f"start-{restart}"), radius=radii[rows]
            )
            climb = _Climb.of(start, 2 * radii[rows])
            checkpoints, since = set(_checkpoints(steps)), 0
            for step in range(steps + 1):
                if not len(rows):
                    return
                final = step == steps
                seen = score.select(rows)(
                    climb.pixels, derive(pick(seeds, rows), f"step-{restart}-{step}"), grad=not final
                )
                fooled = (seen.margin > 0) & (self.stop == "broken")
                record.add(rows, climb.pixels, seen, restart * (steps + 1) + step)
                if not final:
                    climb = climb.seen(seen.value, gradient_of(seen))
                    since += step > 0
                    if step in checkpoints:
                        climb, since = climb.checked(self.share * since), 0
                    climb = self._moved(climb, pixels[rows], radii[rows], momentum=step > 0)
                stay = ~leaving(fooled, None if teams is None else teams[rows])
                rows, climb = rows[stay], _Climb(*(part[stay] for part in climb))
                yield record

    def bill(self, rows: int) -> Cost:
        """Upper bound for that many rows, if none leaves early and a score costs one pass a row."""
        return Cost(self.steps + 1, self.steps).times(rows * self.restarts)

    def _moved(self, climb: "_Climb", origin: Pixels, radii: Tensor, *, momentum: bool) -> "_Climb":
        ascended = self.ball.project(
            self.ball.ascend(climb.pixels, climb.gradient, climb.length), origin, radius=radii
        )
        if momentum:
            drift = (1 - _MOMENTUM) * (climb.pixels - climb.previous)
            ascended = self.ball.project(
                climb.pixels + _MOMENTUM * (ascended - climb.pixels) + drift, origin, radius=radii
            )
        return climb._replace(pixels=ascended, previous=climb.pixels)


class _Climb(NamedTuple):
    """Where each row is and how it fares; all [B, ...]. `best_before` and `halved_before` are what the last
    checkpoint saw and did.
    """

    pixels: Pixels
    previous: Pixels
    gradient: Tensor
    length: Tensor
    value: Tensor
    rises: Tensor
    best_pixels: Pixels
    best_gradient: Tensor
    best: Tensor
    best_before: Tensor
    halved_before: Tensor

    @staticmethod
    def of(start: Pixels, length: Tensor) -> "_Climb":
        low = torch.full_like(length, -torch.inf)
        nowhere = torch.zeros_like(start)
        halved = torch.ones_like(low, dtype=torch.bool)  # so that the first checkpoint only counts rises
        return _Climb(
            start, start, nowhere, length, low, torch.zeros_like(low), start, nowhere, low, low, halved
        )

    def seen(self, value: Tensor, gradient: Tensor) -> "_Climb":
        """The present point turned out to be worth `value`."""
        better = value > self.best
        wide = better[:, None, None, None]
        return self._replace(
            gradient=gradient,
            value=value,
            rises=self.rises
            + ((value > self.value) & self.value.isfinite()).to(value),  # nothing rises to the start
            best=torch.where(better, value, self.best),
            best_pixels=torch.where(wide, self.pixels, self.best_pixels),
            best_gradient=torch.where(wide, gradient, self.best_gradient),
        )

    def checked(self, least_rises: float) -> "_Climb":
        """At a checkpoint: rows that rarely rose, or have the step and the best value they had at the last
        one, go on from their best at half the step..

        """
        stuck = ~self.halved_before & (self.best <= self.best_before)
        halved = (self.rises <= least_rises) | stuck
        wide = halved[:, None, None, None]
        return self._replace(
            pixels=torch.where(wide, self.best_pixels, self.pixels),
            gradient=torch.where(wide, self.best_gradient, self.gradient),
            length=torch.where(halved, self.length / 2, self.length),
            rises=torch.zeros_like(self.rises),
            best_before=self.best,
            halved_before=halved,
        )


def _checkpoints(steps: int) -> list[int]:
    """The steps after which step lengths are reconsidered: 22 % of all, then periods that shrink by 3 % to no
    less than 6 %.
    """
    period, least, shorter = (max(int(share * steps), 1) for share in (0.22, 0.06, 0.03))
    checkpoints, at = [], period
    while at < steps:
        checkpoints.append(at)
        period = max(period - shorter, least)
        at += period
    return checkpoints
