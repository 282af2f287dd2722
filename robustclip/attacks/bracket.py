"""The engine of `minimal`: FMN for a first witness, then several radii at once between what withstood and
what broke, then the ensemble.

Balls are nested, so a witness at one radius is a witness at every larger one, and shrinking it is the best
start for a smaller one. The upper end of the bracket has a witness; the lower end is a record of effort and
proves nothing.
"""

import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from robustclip.attacks.base import BestPoints
from robustclip.attacks.cascade import CandidateCheck, Precision
from robustclip.attacks.ensemble import Ensemble
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
from robustclip.scores import reduced, restated
from robustclip.seeds import derive
from robustclip.threat import BallSpec
from robustclip.types import Cost, Pixels, Score, Seeds

SHRUNK = 8  # smaller radii at which a witness is tried as it is
RADII = 4  # tried at once, each from the shrunk witness and from a random point
LADDER = 8  # radii, each half of the one before, where FMN succeeded nowhere
CASCADES = 4  # at most, each below a radius that the one before broke
_ROUNDING = 1e-6  # how far outside its ball float32 may put a point


def bill(ball: BallSpec, width: float) -> Cost:
    """Upper bound of a search in float32 without its ensembles, if a score costs one pass a row."""
    rounds = math.ceil(math.log(max(ball.radius / width, 2)) / math.log(RADII + 1))
    ladder = _ladder(ball).bill(LADDER).plus(Cost(LADDER))
    closing = _round(ball).bill(2 * RADII).plus(Cost(2 * RADII)).times(rounds + CASCADES)
    return FMN(ball=ball).bill(1).plus(ladder).plus(Cost(SHRUNK)).plus(closing)


def _ladder(ball: BallSpec) -> PGD:
    return PGD(ball=ball, steps=20, starts=("random",))


def _round(ball: BallSpec) -> PGD:
    return PGD(ball=ball, steps=20, starts=("zero",))


@dataclass(eq=False)
class BracketSearch:
    """One search for the smallest radius that breaks the picture [1, 3, S, S]; `events` goes through it once.

    ball       the norm, and the farthest radius that is tried
    width      the bracket's width at which the search ends
    ensemble   attacks once more just below the best witness; None: nothing does
    precision  of the search; every candidate is judged in float32
    judge      has the last word on what is a witness
    charged    the most that it may cost, in charged passes: to be announced
    """

    ball: BallSpec
    width: float
    ensemble: Ensemble | None
    precision: Precision
    score: Score
    pixels: Pixels
    seeds: Seeds
    meter: Meter
    judge: CandidateCheck | None
    charged: int
    nearest: Pixels | None = None
    broken: float = math.inf
    withstood: list[float] = field(default_factory=list)
    rounds: int = 0

    @property
    def unbroken(self) -> float:
        """The largest radius that withstood, below the nearest witness by more than rounding."""
        limit = (1 - _ROUNDING) * self.broken - _ROUNDING
        return max((radius for radius in self.withstood if radius < limit), default=0.0)

    def events(self, known: Pixels | None) -> Iterator[Event]:
        yield Started(1, self.charged)
        with self.meter.stopping():
            yield from self._first(known)
            for _ in range(CASCADES):
                yield from self._close_in()
                if self.ensemble is None or self.meter.over() or self.broken == 0:
                    break
                before, largest = self.broken, self.ball.radius
                yield from self._cascade(self.ensemble, largest if self.nearest is None else self.unbroken)
                if self.broken == before:
                    break
        yield self._bracket()
        yield Done((0,) if self.nearest is None else (), self.meter.spent, self.meter.cut)

    def _first(self, known: Pixels | None) -> Iterator[Event]:
        """A witness at any distance: the known one, FMN's, or one of PGD's over a ladder of radii; then the
        same one brought nearer.
        """
        ball, device = self.ball, self.pixels.device
        yield from self._accept("clean", self.pixels)
        if known is not None:
            yield from self._accept("replay", ball.project(known, self.pixels))
        if self.nearest is None:
            streams = derive(self.seeds, "fmn")
            yield from self._searched("fmn", FMN(ball=ball).search(self._margin(1), self.pixels, streams))
        if self.nearest is None and not self.meter.over():
            radii, streams = (
                ball.radius / 2 ** torch.arange(LADDER, device=device),
                self._streams("ladder", LADDER),
            )
            search = _ladder(ball).search(
                self._margin(LADDER), self._copies(LADDER), streams, radius=radii.to(self.pixels)
            )
            yield from self._searched("ladder", search, radii)
        if self.nearest is not None and self.broken > 0 and not self.meter.over():
            radii = self.broken * torch.arange(1, SHRUNK + 1, device=device) / (SHRUNK + 1)
            shrunk = ball.shrink(self.nearest.expand(SHRUNK, -1, -1, -1), self._copies(SHRUNK), radii)
            seen = self._margin(SHRUNK)(shrunk, self._streams("shrunk", SHRUNK), grad=False)
            self.meter.pay(seen.cost)
            for place in (seen.margin > 0).nonzero().flatten().tolist()[:1]:
                yield from self._accept("shrunk", shrunk[place : place + 1])

    def _close_in(self) -> Iterator[Event]:
        """Rounds of radii between what withstood and what broke."""
        ball = self.ball
        while self.nearest is not None and self.broken - self.unbroken > self.width and not self.meter.over():
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
        """Run a search whose rows are one picture at several radii; keep the nearest witness, and the radii
        that withstood the search.

        Points that reached the goal are judged again from the nearest on, until one is confirmed: those
        farther away can't be the nearest witness. A radius withstood if no point there was confirmed.
        """
        yield AttackStarted(attack, 1)
        found: BestPoints | None = None
        for found in self.meter.metered(search):
            if found.cost.forward:
                yield SearchProgress(attack, found.margin.max().item(), self.meter.spent)
        before = self.broken
        if found is not None and found.cost.forward:
            distance = self.ball.distance(found.pixels, self.pixels)
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
        """Whether a candidate is confirmed when it is judged again; the nearest of these is kept."""
        seen = self.score(candidate, derive(self.seeds, f"confirm-{attack}-{self.rounds}"), grad=False)
        self.meter.pay(seen.cost)
        row = torch.zeros(1, dtype=torch.int64, device=candidate.device)
        if not (bool(seen.margin > 0) and (self.judge is None or bool(self.judge(candidate, row).all()))):
            return False
        distance = float(self.ball.distance(candidate, self.pixels))
        if distance < self.broken:
            self.nearest, self.broken = candidate, distance
            yield CascadeWitness(0, candidate[0], float(seen.margin), distance, attack)
            yield self._bracket()
        return True

    def _cascade(self, ensemble: Ensemble, radius: float) -> Iterator[Event]:
        """The ensemble at one radius."""
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
        return reduced(score) if self.precision == "bfloat16" else score

    def _copies(self, rows: int) -> Pixels:
        return self.pixels.expand(rows, -1, -1, -1)

    def _streams(self, stream: str, rows: int) -> Seeds:
        return torch.cat([derive(self.seeds, f"{stream}-{row}") for row in range(rows)])
