"""Random points of the ball. Where they succeed no gradient is needed; where they beat gradients, the
gradients are wrong.
"""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from robustclip.attacks.base import BallAttack, Search
from robustclip.seeds import derive
from robustclip.types import Cost

MAX_DRAWS = 10_000


class Noise(BallAttack):
    """The picture itself, then `draws` points of the ball; a row that reached its goal leaves."""

    kind: Literal["noise"] = "noise"
    draws: int = Field(default=8, ge=1, le=MAX_DRAWS)

    def passes(self) -> Cost:
        return Cost(self.draws + 1)

    def still(self) -> "Noise":
        return self.model_copy(update={"draws": 0})

    def explore(self, search: Search) -> Iterator[None]:
        for draw in range(self.draws + 1):
            origin, streams = search.origin, search.streams(f"draw-{draw}")
            points = self.ball.sample(origin, streams, radius=search.limits) if draw else origin
            seen = search.ask(points, derive(streams, "victim"), grad=False)
            search.leave(seen.margin > 0)
            yield
