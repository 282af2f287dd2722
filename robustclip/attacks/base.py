"""The base of attacks. An attack is its parameters, `passes` and `explore`; the rest is here: the check of
seeds, the radius of each row, which rows are still searched, the best point of each row, the bill.

A search is an iterator that yields its record once before anything is computed and again after every call of
the score. The caller may read the record, stop between two calls, and still hold the best points so far;
calling the attack runs the search to its end.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from robustclip.errors import InvalidInput
from robustclip.seeds import derive
from robustclip.threat import BallSpec
from robustclip.types import Attacked, Cost, Evaluation, Pixels, Score, Seeds

Options: TypeAlias = Mapping[str, Any]


@dataclass(eq=False)
class BestPoints:
    """The best point of each row so far, and the trace of all evaluations. A NaN value is never better."""

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
        """Before any evaluation; `points` is the most that any row will get."""
        low = torch.full_like(pixels[:, 0, 0, 0], -torch.inf)
        trace = torch.full((points, len(pixels)), torch.nan, device=pixels.device)
        never = torch.full_like(low, -1, dtype=torch.int64)
        return BestPoints(pixels.clone(), low, low.clone(), low.clone(), never, trace, trace.clone())

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
        first = reached & ((first_before < 0) | (first_before > when))  # starts side by side: not in order
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


@dataclass(eq=False)
class Search:
    """One run of an attack over a batch: pixels [B, 3, S, S], `radii` and `seeds` [B].

    rows   [n] the rows that are still searched; `origin`, `limits`, `streams` are about them
    teams  [B] rows of a team search for the same picture: they leave together
    begin  where a search that starts at the pictures starts instead
    calls  how often rows were evaluated: the place of the next evaluation in the trace
    """

    score: Score
    pixels: Pixels
    seeds: Seeds
    radii: Tensor
    teams: Tensor | None
    begin: Pixels | None
    record: BestPoints
    rows: Tensor
    calls: int = 0

    @property
    def origin(self) -> Pixels:
        return self.pixels[self.rows]

    @property
    def limits(self) -> Tensor:
        return self.radii[self.rows]

    def streams(self, name: str) -> Seeds:
        """[n] fresh seeds: the same for a row whatever its batch mates are."""
        return derive(pick(self.seeds, self.rows), name)

    def ask(
        self,
        points: Pixels,
        streams: Seeds,
        *,
        grad: bool,
        eligible: Tensor | None = None,
        rank: Tensor | None = None,
    ) -> Evaluation:
        """Evaluate a point for each row and enter it into the record: see `BestPoints.add`."""
        seen = self.score.select(self.rows)(points, streams, grad=grad)
        self.record.add(self.rows, points, seen, self.calls, eligible=eligible, rank=rank)
        self.calls += 1
        return seen

    def leave(self, done: Tensor) -> Tensor:
        """Drop the rows [n] that are `done`, with their teams. Returns which stay [n], to index what the
        attack holds of each row.
        """
        if self.teams is not None and bool(done.any()):
            teams = self.teams[self.rows]
            done = torch.isin(teams, teams[done])
        stay = ~done
        self.rows = self.rows[stay]
        return stay


class BallAttack(BaseModel):
    """An attack inside a ball. A new one needs a `kind`, its parameters, `passes` and `explore`.

    quick  parameters with which a trial ends within a moment; the contract tests use them
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    quick: ClassVar[Options] = {}
    kind: Any
    ball: BallSpec

    def passes(self) -> Cost:
        """Most passes of a row, if a score costs one pass."""
        raise NotImplementedError

    def explore(self, search: Search) -> Iterator[None]:
        """Search; yield after every call of the score. Ends by itself, or is ended when no row is left."""
        raise NotImplementedError

    def points(self) -> int:
        """Most points of a row's trace."""
        return self.passes().forward

    def still(self) -> "BallAttack":
        """The same where no row may move: an attack that saves passes there says so."""
        return self

    def bill(self, rows: int) -> Cost:
        """Upper bound for that many rows, if none leaves early and a score costs one pass a row."""
        return self.passes().times(rows)

    def __call__(
        self, score: Score, pixels: Pixels, seeds: Seeds, *, radius: Tensor | None = None
    ) -> Attacked:
        """Attack every row by itself: the result depends on its seed, not on batch mates. `radius` [B]
        overrides the ball's.

        Raises InvalidInput for a wrong number of seeds, and for a score without the gradient that is needed.
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
        begin: Pixels | None = None,
    ) -> Iterator[BestPoints]:
        """The same, call by call; `teams` and `begin` as in `Search`."""
        check_seeds(pixels, seeds)
        radii = radii_of(pixels, self.ball.radius, radius)
        attack = self if bool(radii.any()) else self.still()
        record = BestPoints.of(pixels, points=attack.points())
        rows = torch.arange(len(pixels), device=pixels.device)
        search = Search(score, pixels, seeds, radii, teams, begin, record, rows)
        yield record
        for _ in attack.explore(search) if len(rows) else ():
            yield record
            if not len(search.rows):
                return


def finished(search: Iterator[BestPoints]) -> Attacked:
    """The result of a search, run to its end."""
    record = next(search)
    for _ in search:  # yields the same record each time
        pass
    return record.attacked()


def gradient_of(seen: Evaluation) -> Tensor:
    """Raises InvalidInput for a score without gradients."""
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
