"""Random points of the ball. What breaks under noise needs no attacker; and where noise beats gradients, the
gradients are wrong.
"""

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from robustclip.attacks.base import BestPoints, check_seeds, finished, leaving, pick, radii_of
from robustclip.seeds import derive
from robustclip.threat import BallSpec
from robustclip.types import Attacked, Cost, Pixels, Score, Seeds

MAX_DRAWS = 10_000


class Noise(BaseModel):
    """The picture itself, then `draws` points of the ball; a row that reached its goal leaves."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["noise"] = "noise"
    ball: BallSpec
    draws: int = Field(default=8, ge=1, le=MAX_DRAWS)

    def __call__(
        self, score: Score, pixels: Pixels, seeds: Seeds, *, radius: Tensor | None = None
    ) -> Attacked:
        """Attack every row by itself. `radius` [B] overrides the ball's."""
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
        """Draw by draw; `teams` [B]: rows of a team leave together."""
        check_seeds(pixels, seeds)
        radii = radii_of(pixels, self.ball.radius, radius)
        draws = self.draws if bool(radii.any()) else 0
        record = BestPoints.of(pixels, points=draws + 1)
        rows = torch.arange(len(pixels), device=pixels.device)
        yield record
        for draw in range(draws + 1):
            if not len(rows):
                return
            streams = derive(pick(seeds, rows), f"draw-{draw}")
            points = self.ball.sample(pixels[rows], streams, radius=radii[rows]) if draw else pixels[rows]
            seen = score.select(rows)(points, derive(streams, "victim"), grad=False)
            record.add(rows, points, seen, draw)
            rows = rows[~leaving(seen.margin > 0, None if teams is None else teams[rows])]
            yield record

    def bill(self, rows: int) -> Cost:
        """Upper bound for that many rows, if none leaves early and a score costs one pass a row."""
        return Cost(self.draws + 1).times(rows)
