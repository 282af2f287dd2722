"""The smallest radius at which one picture breaks: FMN for a first witness, then several radii at once
between what held and what broke, then the cascade.

Balls are nested, so a witness at one radius is a witness at every larger one, and shrinking it is the best
start for a smaller one. The upper end of the bracket has a witness; the lower end is a record of effort and
proves nothing.
"""

import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from robustclip.attacks.base import BestPoints, check_seeds
from robustclip.attacks.cascade import CandidateCheck, Precision
from robustclip.attacks.ensemble import Ensemble, Preset
from robustclip.attacks.events import (
    AttackEnded,
    AttackStarted,
    Bracket,
    CascadeWitness,
    Done,
    Event,
    Meter,
    SearchProgress,
    Started,
)
from robustclip.attacks.fmn import FMN
from robustclip.attacks.pgd import PGD
from robustclip.errors import Cancelled, DeadlineExceeded, InvalidInput
from robustclip.scores.kinds import decision, restated
from robustclip.scores.wrappers import reduced
from robustclip.seeds import derive
from robustclip.threat import BallSpec, Linf, Radius
from robustclip.types import FREE, Cost, Pixels, Score, Seeds

SHRUNK = 8  # smaller radii at which a witness is tried as it is
RADII = 4  # tried at once, each from the shrunk witness and from a random point
LADDER = 8  # radii, each half of the one before, where FMN found nothing
_ROUNDING = 1e-6  # how far outside its ball float32 may put a point
CASCADES = 4  # at most, each below a radius that the one before broke


class Minimal(BaseModel):
    """Close in on the smallest radius.

    ball       the norm, and the farthest radius that is tried
    width      when the bracket is close enough; None: 0.05/255 for Linf, 0.01 for L2
    preset     of the ensemble that has the last word just below the best witness; None: nobody has
    precision  of the search; what counts is judged in float32
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["minimal"] = "minimal"
    ball: BallSpec
    width: Annotated[Radius, Field(gt=0)] | None = None
    preset: Preset | None = "standard"
    together: int = Field(default=9, ge=1, le=64)
    randomized: bool = False
    precision: Precision = "float32"

    def events(
        self,
        score: Score,
        pixels: Pixels,
        seeds: Seeds,
        *,
        meter: Meter | None = None,
        judge: CandidateCheck | None = None,
        known: Pixels | None = None,
    ) -> Iterator[Event]:
        """Attack one picture [1, 3, S, S]; `Bracket` after every witness and every round, last `Done`.

        `judge` has the last word on what is a witness; `known` [1, 3, S, S] is an earlier one, and saves the
        search for the first. Stopping the iterator stops the attack. Raises InvalidInput for more than one
        picture and for a score that is not about a decision between labels.
        """
        check_seeds(pixels, seeds)
        if len(pixels) != 1:
            raise InvalidInput(
                f"a bracket is about 1 picture, found {len(pixels)}.",
                field="pixels",
                help="Ask for one after the other.",
            )
        decision(score)
        return _Search(self, score, pixels, seeds, meter or Meter(), judge).events(known)

    def bill(self, *, labels: int = 10) -> Cost:
        """Upper bound, if a score costs one pass a row."""
        rounds = math.ceil(math.log(max(self.ball.radius / self.closeness, 2)) / math.log(RADII + 1))
        search = (
            FMN(ball=self.ball)
            .bill(1)
            .plus(_ladder(self.ball).bill(LADDER).plus(Cost(LADDER)))
            .plus(Cost(SHRUNK))
            .plus(_round(self.ball).bill(2 * RADII).plus(Cost(2 * RADII)).times(rounds + CASCADES))
        )
        cascade = (
            FREE if self.preset is None else self.ensemble(self.preset).bill(1, labels=labels).times(CASCADES)
        )
        return search.times(1 if self.precision == "float32" else 2).plus(cascade)

    @property
    def closeness(self) -> float:
        """The bracket's width at which the search ends, in the ball's norm."""
        return self.width or (0.05 / 255 if isinstance(self.ball, Linf) else 0.01)

    def ensemble(self, preset: Preset) -> Ensemble:
        """Who has the last word."""
        return Ensemble(
            ball=self.ball,
            preset=preset,
            together=self.together,
            randomized=self.randomized,
            precision=self.precision,
        )


def _ladder(ball: BallSpec) -> PGD:
    return PGD(ball=ball, steps=20, starts=("random",))


def _round(ball: BallSpec) -> PGD:
    return PGD(ball=ball, steps=20, starts=("zero",))


@dataclass(eq=False)
class _Search:
    minimal: Minimal
    score: Score
    pixels: Pixels
    seeds: Seeds
    meter: Meter
    judge: CandidateCheck | None
    nearest: Pixels | None = None
    broken: float = math.inf
    withstood: list[float] = field(default_factory=list)
    rounds: int = 0

    @property
    def unbroken(self) -> float:
        """The largest radius that withstood, below the nearest witness; one that the witness left by rounding
        alone did not withstand.
        """
        return max(
            (radius for radius in self.withstood if radius < (1 - _ROUNDING) * self.broken - _ROUNDING),
            default=0.0,
        )

    def events(self, known: Pixels | None) -> Iterator[Event]:
        yield Started(1, self.minimal.bill(labels=len(decision(self.score).classifier.labels)).charged)
        try:
            yield from self._first(known)
            for _ in range(CASCADES):
                yield from self._close_in()
                if self.minimal.preset is None or self.meter.over() or self.broken == 0:
                    break
                before = self.broken
                yield from self._cascade(
                    self.minimal.ensemble(self.minimal.preset),
                    self.unbroken if self.nearest is not None else self.minimal.ball.radius,
                )
                if self.broken == before:
                    break
        except Cancelled:
            self.meter.cut = "cancelled"
        except DeadlineExceeded:
            self.meter.cut = "deadline"
        yield self._bracket()
        yield Done((0,) if self.nearest is None else (), self.meter.spent, self.meter.cut)

    def _first(self, known: Pixels | None) -> Iterator[Event]:
        """A witness at any distance: a known one, FMN's, or one of PGD's over a ladder of radii; then the
        same, shrunk.
        """
        ball = self.minimal.ball
        yield from self._accept("clean", self.pixels)
        if known is not None:
            yield from self._accept("replay", ball.project(known, self.pixels))
        if self.nearest is None:
            yield from self._searched(
                "fmn", FMN(ball=ball).search(self._margin(1), self.pixels, derive(self.seeds, "fmn"))
            )
        if self.nearest is None and not self.meter.over():
            radii = ball.radius / 2 ** torch.arange(LADDER, device=self.pixels.device)
            search = _ladder(ball).search(
                self._margin(LADDER),
                self._copies(LADDER),
                self._streams("ladder", LADDER),
                radius=radii.to(self.pixels),
            )
            yield from self._searched("ladder", search, radii)
        if self.nearest is not None and self.broken > 0 and not self.meter.over():
            radii = self.broken * torch.arange(1, SHRUNK + 1, device=self.pixels.device) / (SHRUNK + 1)
            shrunk = ball.shrink(self.nearest.expand(SHRUNK, -1, -1, -1), self._copies(SHRUNK), radii)
            seen = self._margin(SHRUNK)(shrunk, self._streams("shrunk", SHRUNK), grad=False)
            self.meter.pay(seen.cost)
            for place in (seen.margin > 0).nonzero().flatten().tolist()[:1]:
                yield from self._accept("shrunk", shrunk[place : place + 1])

    def _close_in(self) -> Iterator[Event]:
        """Rounds of radii between what withstood and what broke."""
        ball = self.minimal.ball
        while (
            self.nearest is not None
            and self.broken - self.unbroken > self.minimal.closeness
            and not self.meter.over()
        ):
            self.rounds += 1
            shares = torch.arange(1, RADII + 1, device=self.pixels.device) / (RADII + 1)
            radii = (self.unbroken + (self.broken - self.unbroken) * shares).to(self.pixels)
            streams = self._streams(f"round-{self.rounds}", 2 * RADII)
            warm = ball.shrink(self.nearest.expand(RADII, -1, -1, -1), self._copies(RADII), radii)
            begin = torch.cat([warm, ball.sample(self._copies(RADII), streams[:RADII], radius=radii)])
            teams = torch.arange(RADII, device=self.pixels.device).repeat(2)
            search = _round(ball).search(
                self._margin(2 * RADII),
                self._copies(2 * RADII),
                streams,
                radius=radii.repeat(2),
                begin=begin,
                teams=teams,
            )
            yield from self._searched("margin-pgd", search, radii.repeat(2))
            yield self._bracket()

    def _searched(
        self, attack: str, search: Iterator[BestPoints], radii: Tensor | None = None
    ) -> Iterator[Event]:
        """Run a search whose rows are one picture at several radii; keep the nearest witness, remember the
        radii that withstood it.

        Points that fooled the search are judged from the nearest on, until one holds: those farther away
        can't be the nearest witness. A radius withstood if nothing fooled there, or what did was rejected.
        """
        yield AttackStarted(attack, 1)
        found: BestPoints | None = None
        for found in self.meter.metered(search):
            if found.cost.forward:
                yield SearchProgress(attack, found.margin.max().item(), self.meter.spent)
        before = self.broken
        if found is not None and found.cost.forward:
            distance = self.minimal.ball.distance(found.pixels, self.pixels)
            stood = ~(found.margin > 0)
            nearest_first = [row for row in distance.argsort(stable=True).tolist() if not stood[row]]
            for place, row in enumerate(nearest_first):
                if (place and self.meter.over()) or (
                    yield from self._accept(attack, found.pixels[row : row + 1])
                ):
                    break
                stood[row] = True
            if radii is not None and self.meter.cut is None:
                self.withstood += radii[stood].tolist()
        yield AttackEnded(attack, int(self.broken < before), int(self.nearest is None), self.meter.spent)

    def _accept(self, attack: str, candidate: Pixels) -> Generator[Event, None, bool]:
        """Judge a candidate anew, and say whether it holds; if it is nearer than the best, it is the best."""
        seen = self.score(candidate, derive(self.seeds, f"confirm-{attack}-{self.rounds}"), grad=False)
        self.meter.pay(seen.cost)
        row = torch.zeros(1, dtype=torch.int64, device=candidate.device)
        if not (bool(seen.margin > 0) and (self.judge is None or bool(self.judge(candidate, row).all()))):
            return False
        distance = float(self.minimal.ball.distance(candidate, self.pixels))
        if distance < self.broken:
            self.nearest, self.broken = candidate, distance
            yield CascadeWitness(0, candidate[0], float(seen.margin), distance, attack)
            yield self._bracket()
        return True

    def _cascade(self, ensemble: Ensemble, radius: float) -> Iterator[Event]:
        """The strong attack at one radius."""
        if radius <= 0:
            return
        limit = torch.full_like(self.pixels[:, 0, 0, 0], radius)
        for event in ensemble.events(
            self.score,
            self.pixels,
            derive(self.seeds, f"cascade-{self.rounds}"),
            meter=self.meter,
            judge=self.judge,
            radius=limit,
        ):
            if isinstance(event, CascadeWitness):
                if event.distance < self.broken:
                    self.nearest, self.broken = event.pixels[None], event.distance
                    yield event
                    yield self._bracket()
            elif not isinstance(event, Started | Done):
                yield event
        if self.nearest is None and self.meter.cut is None:
            self.withstood.append(radius)

    def _bracket(self) -> Bracket:
        return Bracket(self.unbroken, None if self.nearest is None else self.broken)

    def _margin(self, rows: int) -> Score:
        score = restated(self.score, "margin").select(
            torch.zeros(rows, dtype=torch.int64, device=self.pixels.device)
        )
        return reduced(score) if self.minimal.precision == "bfloat16" else score

    def _copies(self, rows: int) -> Pixels:
        return self.pixels.expand(rows, -1, -1, -1)

    def _streams(self, stream: str, rows: int) -> Seeds:
        return torch.cat([derive(self.seeds, f"{stream}-{row}") for row in range(rows)])
