"""Projected gradient ascent (Madry et al. 2018, arXiv 1706.06083) and the fast gradient sign method
(Goodfellow et al. 2015, arXiv 1412.6572).

Deviations from both: the best point is returned, not the last; several starts; rows that reached the goal
leave the batch; a randomized victim draws fresh noise at every step.
"""

from collections.abc import Iterator
from typing import Annotated, Literal, Self, TypeAlias

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from robustclip.attacks.base import BestPoints, check_seeds, finished, gradient_of, leaving, pick, radii_of
from robustclip.seeds import derive
from robustclip.threat import BallSpec, Radius
from robustclip.types import Attacked, Cost, Pixels, Score, Seeds

Start: TypeAlias = Literal["zero", "random", "one_sided"]

MAX_STEPS = 10_000
MAX_STARTS = 100
SIDE_BY_SIDE = (
    8  # starts in one batch: more would be no faster, and a request for thousands must not fill the memory
)


class PGD(BaseModel):
    """Climb the score by gradient steps, back into the ball after each, from every start: side by side where
    no row leaves, else in turn.

    step      length of a step in pixel units; None: 2.5 radius / steps
    starts    `zero` is the picture itself, `random` anywhere in the ball, `one_sided` the brighter part of it
              (as AdvPT's code)
    restarts  how often each drawn start is repeated, with fresh draws
    keep      `best`: of all points seen, the one past its goal by the largest margin, else the one of largest
              value; `last`: of the end points only
    stop      `broken`: a row that reached its goal leaves for good; `never`: every row takes all steps, to
              find its worst point
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["pgd"] = "pgd"
    ball: BallSpec
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

    def __call__(
        self, score: Score, pixels: Pixels, seeds: Seeds, *, radius: Tensor | None = None
    ) -> Attacked:
        """Attack every row by itself: the result depends on its seed, not on batch mates. `radius` [B]
        overrides the ball's.

        A ball of radius 0 costs one forward pass. Raises InvalidInput for a wrong number of seeds and for a
        score that offers no gradient.
        """
        return finished(self.search(score, pixels, seeds, radius=radius))

    def search(
        self,
        score: Score,
        pixels: Pixels,
        seeds: Seeds,
        *,
        radius: Tensor | None = None,
        begin: Pixels | None = None,
        teams: Tensor | None = None,
    ) -> Iterator[BestPoints]:
        """Step by step. `begin`: where the start `zero` is, instead of the picture itself; `teams` [B]: rows
        of a team leave together.
        """
        check_seeds(pixels, seeds)
        radii = radii_of(pixels, self.ball.radius, radius)
        lengths = 2.5 * radii / self.steps if self.step is None else torch.full_like(radii, self.step)
        starts: tuple[Start, ...] = self._starts() if bool(radii.any()) else ("zero",)
        steps = self.steps if bool(radii.any()) else 0
        record = BestPoints.of(pixels, points=len(starts) * (steps + 1))
        rows = torch.arange(len(pixels), device=pixels.device)  # those still in the batch
        yield record
        for wave in self._waves(len(starts)):
            current = torch.cat(
                [self._begun(starts[index], index, pixels, seeds, radii, rows, begin) for index in wave]
            )
            for step in range(steps + 1):
                if not len(rows):
                    return
                final, copies = (
                    step == steps,
                    rows.repeat(len(wave)),
                )  # the rows once for each start of the wave
                streams = torch.cat([derive(pick(seeds, rows), f"step-{index}-{step}") for index in wave])
                seen = score.select(copies)(current, streams, grad=not final)
                fooled = (seen.margin > 0) & (self.stop == "broken")
                eligible = fooled | (self.keep == "best" or final)
                for index, part in zip(
                    wave, torch.arange(len(copies), device=copies.device).split(len(rows)), strict=True
                ):
                    record.add(
                        rows,
                        current[part],
                        seen.rows(part),
                        index * (steps + 1) + step,
                        eligible=eligible[part],
                    )
                record.cost = record.cost.plus(seen.cost)
                if not final:
                    climbed = self.ball.ascend(current, gradient_of(seen), lengths[copies])
                    current = self.ball.project(climbed, pixels[copies], radius=radii[copies])
                if self.stop == "broken":  # a wave is one start
                    stay = ~leaving(fooled, None if teams is None else teams[rows])
                    rows, current = rows[stay], current[stay]
                yield record

    def seen_from(self, start: Start) -> range:
        """The points of the trace that the first such start leads to; empty where there is none."""
        starts = self._starts()
        first = starts.index(start) * (self.steps + 1) if start in starts else 0
        return range(first, first + (self.steps + 1) * (start in starts))

    def bill(self, rows: int) -> Cost:
        """Upper bound for that many rows, if none leaves early and a score costs one pass a row."""
        return Cost(self.steps + 1, self.steps).times(rows * len(self._starts()))

    def _waves(self, starts: int) -> list[range]:
        """Starts that climb side by side: eight where every row takes every step, else one, so that a row
        that fell needs no other.
        """
        width = SIDE_BY_SIDE if self.stop == "never" else 1
        return [range(index, min(index + width, starts)) for index in range(0, starts, width)]

    def _begun(
        self,
        start: Start,
        index: int,
        pixels: Pixels,
        seeds: Seeds,
        radii: Tensor,
        rows: Tensor,
        begin: Pixels | None,
    ) -> Pixels:
        """Where the rows begin their climb from a start."""
        if start == "zero":
            return pixels[rows] if begin is None else begin[rows]
        noise = derive(pick(seeds, rows), f"start-{index}")
        return self.ball.sample(pixels[rows], noise, one_sided=start == "one_sided", radius=radii[rows])

    def _starts(self) -> tuple[Start, ...]:
        return tuple(start for start in self.starts for _ in range(1 if start == "zero" else self.restarts))


class FGSM(BaseModel):
    """PGD of one step, the whole radius from the picture; `random_start`: 1.25 radius from a random point
    (Wong et al. 2020, arXiv 2001.03994).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["fgsm"] = "fgsm"
    ball: BallSpec
    random_start: bool = False

    def __call__(self, score: Score, pixels: Pixels, seeds: Seeds) -> Attacked:
        return finished(self.search(score, pixels, seeds))

    def search(self, score: Score, pixels: Pixels, seeds: Seeds) -> Iterator[BestPoints]:
        """Call by call."""
        return self._pgd().search(score, pixels, seeds)

    def bill(self, rows: int) -> Cost:
        """Upper bound for that many rows."""
        return self._pgd().bill(rows)

    def _pgd(self) -> PGD:
        step = self.ball.radius * (1.25 if self.random_start else 1.0)
        return PGD(
            ball=self.ball, steps=1, step=step or None, starts=("random",) if self.random_start else ("zero",)
        )
