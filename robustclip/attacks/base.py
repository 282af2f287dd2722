"""What attacks share: the best point of each row, what was seen on the way, and who leaves the batch when.

An attack's `search` is an iterator that yields its record once at the start and again after every call of the
score. Whoever runs it may look, stop it between two calls, and still hold the best points so far; calling the
attack runs it to its end.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from robustclip.errors import InvalidInput
from robustclip.types import Attacked, Cost, Evaluation, Pixels, Seeds


@dataclass(eq=False)
class BestPoints:
    """The best point of each row so far, and what was seen on the way. A point of NaN value is never better
    than anything.
    """

    pixels: Pixels
    value: Tensor
    margin: Tensor
    rank: Tensor
    first_success: Tensor
    trace_value: Tensor
    trace_margin: Tensor
    cost: Cost = field(default_factory=Cost)

    @staticmethod
    def of(pixels: Pixels, *, points: int) -> "BestPoints":
        """Nothing seen yet; `points` is the most that any row will see."""
        low = torch.full_like(pixels[:, 0, 0, 0], -torch.inf)
        trace = torch.full((points, len(pixels)), torch.nan, device=pixels.device)
        return BestPoints(
            pixels.clone(),
            low,
            low.clone(),
            low.clone(),
            torch.full_like(low, -1, dtype=torch.int64),
            trace,
            trace.clone(),
        )

    def add(
        self,
        rows: Tensor,
        points: Pixels,
        seen: Evaluation,
        when: int,
        *,
        eligible: Tensor | None = None,
        rank: Tensor | None = None,
    ) -> None:
        """Enter one evaluation of `rows`; only `eligible` rows may take it as their best point.

        A point that reaches the goal beats any that does not; among those `rank` decides (absent: the
        margin), among the others the value.
        """
        self.cost = self.cost.plus(seen.cost)
        self.trace_value[when, rows] = seen.value
        self.trace_margin[when, rows] = seen.margin
        rank = seen.margin if rank is None else rank
        reached, reached_before = seen.margin > 0, self.margin[rows] > 0
        first_before = self.first_success[rows]
        first = reached & (
            (first_before < 0) | (first_before > when)
        )  # points of several starts come side by side
        self.first_success[rows[first]] = when
        higher = torch.where(reached & reached_before, rank > self.rank[rows], seen.value > self.value[rows])
        better = (reached & ~reached_before) | ((reached == reached_before) & higher)
        if eligible is not None:
            better &= eligible
        self.pixels[rows[better]] = points[better]
        self.value[rows[better]] = seen.value[better]
        self.margin[rows[better]] = seen.margin[better]
        self.rank[rows[better]] = rank[better]

    def attacked(self) -> Attacked:
        return Attacked(
            self.pixels,
            self.value,
            self.margin,
            self.first_success,
            self.trace_value,
            self.trace_margin,
            self.cost,
        )


def finished(search: Iterator[BestPoints]) -> Attacked:
    """The result of a search, run to its end."""
    record = next(search)
    for _ in search:  # yields the same record each time
        pass
    return record.attacked()


def leaving(fooled: Tensor, teams: Tensor | None) -> Tensor:
    """[B] who leaves: those who reached the goal, and their `teams` [B] mates, rows that search for the same
    picture.
    """
    return fooled if teams is None or not bool(fooled.any()) else torch.isin(teams, teams[fooled])


def gradient_of(seen: Evaluation) -> Tensor:
    """Raises InvalidInput for a score that offers none."""
    if seen.grad is None:
        raise InvalidInput(
            "this attack needs gradients, the score has none.",
            field="attack",
            help="Attack without gradients.",
        )
    return seen.grad


def check_seeds(pixels: Pixels, seeds: Seeds) -> None:
    """Raises InvalidInput unless there is a seed a row."""
    if len(seeds) != len(pixels):
        raise InvalidInput(f"expected {len(pixels)} seeds, one a row, found {len(seeds)}.", field="seeds")


def pick(seeds: Seeds, rows: Tensor) -> Seeds:
    return seeds[rows.to(seeds.device)]


def radii_of(pixels: Pixels, radius: float, override: Tensor | None) -> Tensor:
    """[B] the radius of each row: the ball's, or the rows' own."""
    return torch.full_like(pixels[:, 0, 0, 0], radius) if override is None else override.to(pixels)
