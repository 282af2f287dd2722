"""Auto-PGD (Croce & Hein 2020, arXiv 2003.01690, algorithm 1): gradient ascent with momentum that halves its
own step where a row stops rising.

Deviations from the authors' code: the value before the first step is that of the start point, not 0; the
first step is twice the radius for L2 too; a row that reached its goal leaves the batch; of the points that
reached it the one of the largest margin is kept; the last point needs no gradient.
"""

from collections.abc import Iterator
from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from robustclip.attacks.base import BallAttack, Options, Search, gradient_of
from robustclip.types import Cost, Pixels

MAX_STEPS = 10_000
MAX_RESTARTS = 100
_MOMENTUM = 0.75  # share of the new direction in every move but the first


class APGD(BallAttack):
    """Climb from random starts with step lengths that adapt themselves.

    share     a row whose value rose in at most this share of the steps since the last checkpoint halves its
              step
    restarts  random starts, one after the other
    stop      `broken`: a row that reached its goal leaves for good; `never`: every row takes all steps, to
              find its worst point
    """

    quick: ClassVar[Options] = {"steps": 25}
    kind: Literal["apgd"] = "apgd"
    steps: int = Field(default=100, ge=1, le=MAX_STEPS)
    share: float = Field(default=0.75, gt=0, lt=1)
    restarts: int = Field(default=1, ge=1, le=MAX_RESTARTS)
    stop: Literal["broken", "never"] = "broken"

    def passes(self) -> Cost:
        return Cost(self.steps + 1, self.steps).times(self.restarts)

    def still(self) -> "APGD":
        return self.model_copy(update={"steps": 0, "restarts": 1})

    def explore(self, search: Search) -> Iterator[None]:
        checkpoints = set(_checkpoints(self.steps))
        for restart in range(self.restarts):
            streams = search.streams(f"start-{restart}")
            start = self.ball.sample(search.origin, streams, radius=search.limits)
            climb, since = _Climb.of(start, 2 * search.limits), 0
            for step in range(self.steps + 1):
                final = step == self.steps
                seen = search.ask(climb.pixels, search.streams(f"step-{restart}-{step}"), grad=not final)
                if not final:
                    climb = climb.seen(seen.value, gradient_of(seen))
                    since += step > 0
                    if step in checkpoints:
                        climb, since = climb.checked(self.share * since), 0
                    climb = self._moved(climb, search.origin, search.limits, momentum=step > 0)
                stay = search.leave((seen.margin > 0) & (self.stop == "broken"))
                climb = _Climb(*(part[stay] for part in climb))
                yield

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
    """The state of each row, all [B, ...]. `best_before`, `halved_before`: the best value at the last
    checkpoint, and whether it halved the step.
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
        """The present point has this value and gradient."""
        better = value > self.best
        rose = (value > self.value) & self.value.isfinite()  # the start itself is no rise
        wide = better[:, None, None, None]
        return self._replace(
            gradient=gradient,
            value=value,
            rises=self.rises + rose.to(value),
            best=torch.where(better, value, self.best),
            best_pixels=torch.where(wide, self.pixels, self.best_pixels),
            best_gradient=torch.where(wide, gradient, self.best_gradient),
        )

    def checked(self, least_rises: float) -> "_Climb":
        """At a checkpoint: a row that rose at most `least_rises` times, or has the step and the best value
        that it had at the last checkpoint, goes on from its best point with half the step.
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
