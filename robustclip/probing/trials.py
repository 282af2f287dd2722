"""One trial of a probe, or the search for the smallest radius, run to its end or until its meter stops it."""

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from robustclip.attacks.base import BestPoints
from robustclip.attacks.ensemble import Ensemble
from robustclip.attacks.events import (
    AttackEnded,
    AttackStarted,
    Bracket,
    CascadeWitness,
    Meter,
    SearchProgress,
)
from robustclip.attacks.minimal import Minimal
from robustclip.probing.attacker import Attacker
from robustclip.probing.events import AttackProgress, BracketMoved
from robustclip.probing.plan import MINIMAL_PASSES, Trial
from robustclip.probing.served import Aim, Served
from robustclip.reports.report import Knowledge, StagePart
from robustclip.sanity.gradients import Climb, Climbing, climbs
from robustclip.threat import BallSpec
from robustclip.types import Attacked, Cost, Pixels, Seeds


class Found(NamedTuple):
    """The best point [1, 3, S, S] of an attack and how it got there; `cost` includes what was judged on the
    way.

    `climb` is what its gradients looked like, where that says something about the decision.
    """

    pixels: Pixels
    attacked: Attacked
    cost: Cost
    stages: tuple[StagePart, ...] = ()
    climb: Climb | None = None


class Bracketed(NamedTuple):
    """A bracket, its nearest witness (None: there is none), and whether it is as close as intended."""

    bracket: Bracket
    nearest: Pixels | None
    complete: bool
    cost: Cost


@dataclass(frozen=True, eq=False)
class Scene:
    """One picture [1, 3, S, S] under attack: who attacks, who judges, and who pays (the meter of
    `served`).
    """

    attacker: Attacker
    served: Served
    pixels: Pixels
    seeds: Seeds
    aim: Aim

    def run(
        self, trial: Trial, *, witnesses: Sequence[Pixels] = ()
    ) -> Generator[AttackProgress, None, Found | None]:
        """Run a trial; None if it was stopped before it saw anything. `witnesses` of earlier trials are
        replayed by a cascade.
        """
        if isinstance(trial.attack, Ensemble):
            return self._cascade(trial, trial.attack, witnesses)
        return self._search(trial)

    def bracket(
        self, minimal: Minimal, *, witnesses: Sequence[Pixels]
    ) -> Generator[AttackProgress | BracketMoved, None, Bracketed | None]:
        """Close in on the smallest radius; None if there was no time for anything."""
        meter = self.served.meter
        allowed = meter.spent.charged + MINIMAL_PASSES * self.attacker.draws("adaptive")
        limited = replace(meter, budget=allowed if meter.budget is None else min(allowed, meter.budget))
        served, score = (
            replace(self.served, meter=limited),
            self.attacker.score("adaptive", self.pixels, self.seeds),
        )
        judge = served.judge(self.pixels, minimal.ball, self.aim, bits=False)
        bracket: Bracket | None = None
        nearest: Pixels | None = None
        known = self.nearest(minimal.ball, witnesses)
        for event in minimal.events(score, self.pixels, self.seeds, meter=limited, judge=judge, known=known):
            match event:
                case Bracket():
                    if event != bracket:
                        yield BracketMoved(
                            norm=minimal.ball.kind, unbroken=event.unbroken, broken=event.broken
                        )
                    bracket = event
                case CascadeWitness():
                    nearest = event.pixels[None]
                case SearchProgress():
                    yield _progress("minimal", "adaptive", event.margin, limited, event.attack)
                case _:
                    pass
        cost = _since(meter.spent, limited)
        meter.spent = limited.spent
        meter.cut = limited.cut if limited.cut != "budget" else None
        if bracket is None:
            return None
        close = bracket.broken is None or bracket.broken - bracket.unbroken <= minimal.closeness * (1 + 1e-3)
        return Bracketed(bracket, nearest, limited.cut is None and close, cost)

    def nearest(self, ball: BallSpec, witnesses: Sequence[Pixels]) -> Pixels | None:
        """The witness that changes least, in the ball's norm."""
        return min(witnesses, key=lambda pixels: ball.distance(pixels, self.pixels).item(), default=None)

    def _search(self, trial: Trial) -> Generator[AttackProgress, None, Found | None]:
        meter, (attack, knowledge) = self.served.meter, trial
        before = meter.spent
        score = self.attacker.score(knowledge, self.pixels, self.seeds)
        if knowledge == "oblivious":
            meter.pay(Cost(1, 0))  # the embedding to move away from
        assert not isinstance(attack, Ensemble)
        record: BestPoints | None = None
        climbing = Climbing(score)
        for record in meter.metered(attack.search(climbing.score, self.pixels, self.seeds)):
            if record.cost.forward:
                yield _progress(attack.kind, knowledge, record.margin.max().item(), meter)
        if record is None or not record.cost.forward:
            return None
        attacked = record.attacked()
        climb = (
            climbing.of(attack, attacked) if knowledge == "adaptive" and climbs(attack, attack.ball) else None
        )
        return Found(record.pixels, attacked, _since(before, meter), climb=climb)

    def _cascade(
        self, trial: Trial, attack: Ensemble, witnesses: Sequence[Pixels]
    ) -> Generator[AttackProgress, None, Found | None]:
        meter = self.served.meter
        before, since = meter.spent, meter.spent.charged
        cascade = attack.cascade(
            self.attacker.score(trial.knowledge, self.pixels, self.seeds),
            self.pixels,
            self.seeds,
            meter=meter,
            judge=self.served.judge(self.pixels, attack.ball, self.aim),
            sources=self.attacker.stand_ins(),
            replays=self.nearest(attack.ball, witnesses),
        )
        stages: list[StagePart] = []
        witness: Pixels | None = None
        for event in cascade.events():
            match event:
                case AttackStarted():
                    since = meter.spent.charged
                case SearchProgress():
                    yield _progress(attack.kind, trial.knowledge, event.margin, meter, event.attack)
                case CascadeWitness():
                    witness = event.pixels[None]
                    if event.attack in ("clean", "replay"):
                        stages.append(
                            StagePart(name=event.attack, broken=True, charged=meter.spent.charged - since)
                        )
                case AttackEnded():
                    stages.append(
                        StagePart(
                            name=event.attack, broken=bool(event.broken), charged=meter.spent.charged - since
                        )
                    )
                case _:
                    pass
        if not cascade.points:
            return None
        attacked = cascade.record.attacked()
        return Found(
            attacked.pixels if witness is None else witness, attacked, _since(before, meter), tuple(stages)
        )


def _since(before: Cost, meter: Meter) -> Cost:
    return Cost(meter.spent.forward - before.forward, meter.spent.backward - before.backward)


def _progress(
    kind: str, knowledge: Knowledge, margin: float, meter: Meter, stage: str | None = None
) -> AttackProgress:
    return AttackProgress(
        kind=kind,
        knowledge=knowledge,
        stage=stage,
        margin=margin if math.isfinite(margin) else None,
        charged=meter.spent.charged,
    )
