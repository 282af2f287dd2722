"""Projected gradient ascent (Madry et al. 2018, arXiv 1706.06083) and the fast gradient sign method
(Goodfellow et al. 2015, arXiv 1412.6572).

Deviations from both: the best point is returned, not the last; several starts; rows that reached the goal
leave the batch; a randomized victim draws fresh noise at every step.
"""

from collections.abc import Iterator
from typing import Annotated, Literal, Self, TypeAlias

import torch
from pydantic import Field, model_validator
from torch import Tensor

from robustclip.attacks.base import BallAttack, Search, gradient_of
from robustclip.threat import Radius
from robustclip.types import Cost, Pixels

Start: TypeAlias = Literal["zero", "random", "one_sided"]

MAX_STEPS = 10_000
MAX_STARTS = 100
SIDE_BY_SIDE = 8  # starts in one batch: more are no faster, and thousands must not fill the memory


class PGD(BallAttack):
    """Climb the score by gradient steps, projected into the ball after each, from every start: side by side
    if no row leaves, else in turn.

    step      length of a step in pixel units; None: 2.5 radius / steps
    starts    `zero` is the picture itself, `random` anywhere in the ball, `one_sided` the brighter part of it
              (as AdvPT's code)
    restarts  how often each random start is repeated, with fresh draws
    keep      `best`: of all points the one of the largest margin beyond the goal, else the one of the largest
              value; `last`: of the end points alone
    stop      `broken`: a row that reached its goal leaves for good; `never`: every row takes all steps, to
              find its worst point
    """

    kind: Literal["pgd"] = "pgd"
    steps: int = Field(default=10, ge=1, le=MAX_STEPS)
    step: Annotated[Radius, Field(gt=0)] | None = None
    starts: tuple[Start, ...] = Field(default=("zero", "random"), min_length=1, max_length=MAX_STARTS)
    restarts: int = Field(default=1, ge=1, le=MAX_STARTS)
    keep: Literal["best", "last"] = "best"
    stop: Literal["broken", "never"] = "broken"

    @model_validator(mode="after")
    def _restarts_repeat_a_draw(self) -> Self:
        if self.restarts > 1 and set(self.starts) == {"zero"}:
            raise ValueError("restarts repeat drawn starts; add random to starts")
        return self

    def passes(self) -> Cost:
        return Cost(self.steps + 1, self.steps).times(len(self._starts()))

    def still(self) -> "PGD":
        return self.model_copy(update={"steps": 0, "starts": ("zero",)})

    def explore(self, search: Search) -> Iterator[None]:
        """From the pictures, or from `search.begin`, where a start is `zero`."""
        length = 2.5 * search.radii / max(self.steps, 1)
        return self.climb(search, length if self.step is None else torch.full_like(length, self.step))

    def climb(self, search: Search, lengths: Tensor) -> Iterator[None]:
        """By steps of `lengths` [B]."""
        starts, record = self._starts(), search.record
        for wave in self._waves(len(starts)):
            current = torch.cat([self._begun(search, starts[index], index) for index in wave])
            for step in range(self.steps + 1):
                final, rows = step == self.steps, search.rows
                copies = rows.repeat(len(wave))  # the rows once for each start of the wave
                streams = torch.cat([search.streams(f"step-{index}-{step}") for index in wave])
                seen = search.score.select(copies)(current, streams, grad=not final)
                fooled = (seen.margin > 0) & (self.stop == "broken")
                eligible = fooled | (self.keep == "best" or final)
                parts = torch.arange(len(copies), device=copies.device).split(len(rows))
                for index, part in zip(wave, parts, strict=True):
                    when = index * (self.steps + 1) + step
                    record.add(rows, current[part], seen.rows(part), when, eligible=eligible[part])
                record.cost = record.cost.plus(seen.cost)
                if not final:
                    climbed = self.ball.ascend(current, gradient_of(seen), lengths[copies])
                    current = self.ball.project(climbed, search.pixels[copies], radius=search.radii[copies])
                if self.stop == "broken":  # a wave is one start
                    current = current[search.leave(fooled)]
                yield

    def seen_from(self, start: Start) -> range:
        """The places in the trace of the first such start; empty if there is none."""
        starts = self._starts()
        first = starts.index(start) * (self.steps + 1) if start in starts else 0
        return range(first, first + (self.steps + 1) * (start in starts))

    def _waves(self, starts: int) -> list[range]:
        """The starts of each batch: eight where every row takes every step, else one, so that a row that
        reached its goal needs no other.
        """
        width = SIDE_BY_SIDE if self.stop == "never" else 1
        return [range(index, min(index + width, starts)) for index in range(0, starts, width)]

    def _begun(self, search: Search, start: Start, index: int) -> Pixels:
        """Where the rows begin their climb from a start."""
        origin = search.origin
        if start == "zero":
            return origin if search.begin is None else search.begin[search.rows]
        streams = search.streams(f"start-{index}")
        return self.ball.sample(origin, streams, one_sided=start == "one_sided", radius=search.limits)

    def _starts(self) -> tuple[Start, ...]:
        return tuple(start for start in self.starts for _ in range(1 if start == "zero" else self.restarts))


class FGSM(BallAttack):
    """PGD of one step, the whole radius from the picture; `random_start`: 1.25 radius from a random point
    (Wong et al. 2020, arXiv 2001.03994).
    """

    kind: Literal["fgsm"] = "fgsm"
    random_start: bool = False

    def passes(self) -> Cost:
        return self._pgd().passes()

    def still(self) -> PGD:
        return self._pgd().still()

    def explore(self, search: Search) -> Iterator[None]:
        length = self.ball.radius * (1.25 if self.random_start else 1.0)
        return self._pgd().climb(search, length * (search.radii / self.ball.radius))

    def _pgd(self) -> PGD:
        return PGD(ball=self.ball, steps=1, starts=("random",) if self.random_start else ("zero",))
