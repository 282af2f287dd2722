"""Checks of the attack itself: for masked gradients and, where no attack succeeded, the self-test."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from robustclip.attacks.events import Meter
from robustclip.probing.attacker import Attacker
from robustclip.probing.options import ProbeOptions, boundless, claimed_ball
from robustclip.reports.report import AttackRecord, Knowledge
from robustclip.sanity import checks
from robustclip.sanity.checks import Suspect
from robustclip.sanity.gradients import Climb
from robustclip.sanity.selftest import SelfTest, self_test
from robustclip.sanity.symptoms import Finding
from robustclip.threat import BallSpec
from robustclip.types import Pixels, Seeds, price


@dataclass(frozen=True, eq=False)
class Examination:
    """One picture [1, 3, S, S] that was attacked, and who pays for the checks."""

    attacker: Attacker
    pixels: Pixels
    seeds: Seeds
    options: ProbeOptions
    meter: Meter

    def findings(self, records: Sequence[AttackRecord], climb: Climb | None) -> Iterator[Finding]:
        """The findings of the checks that `records` call for, one at a time; each is paid before the next.

        climb  how the gradient attack in the claimed ball went, if one ran
        """
        suspect, successes = self._suspect(), successes_of(records)
        unbounded, queried = boundless(suspect.ball, self.pixels.shape[-1]), queried_in(records, suspect.ball)
        for finding in checks.examine(
            suspect, dict[str, bool](successes.items()), unbounded=unbounded, queried=queried, climb=climb
        ):
            self.meter.pay(finding.cost)
            yield finding

    def self_test(self, records: Sequence[AttackRecord]) -> SelfTest | None:
        """Whether the attack solves problems with a known answer; None where the options leave it out, or an
        attack succeeded.
        """
        suspect, successes = self._suspect(), successes_of(records)
        standing = successes.get("adaptive") is False and not successes.get("black_box", False)
        if not standing or not self.options.tests_itself or suspect.gradient == "none":
            return None
        defended = self.attacker.victim.reference
        outcome, cost = self_test(
            defended.features,
            self.pixels,
            self.seeds,
            suspect.ball,
            eot=suspect.eot,
            toll=defended.toll,
            access=self.attacker.access,
        )
        self.meter.pay(cost)
        return outcome

    def _suspect(self) -> Suspect:
        victim = self.attacker.victim
        defended, defense = victim.reference, victim.reference.defense
        return Suspect(
            score=self.attacker.score("adaptive", self.pixels, self.seeds),
            undefended=self.attacker.score("static", self.pixels, self.seeds) if victim.defense else None,
            classifier=self.attacker.access.shared(defended),
            pixels=self.pixels,
            seeds=self.seeds,
            ball=claimed_ball(self.options),
            gradient=defense.gradient,
            randomized=defense.randomized,
            eot=self.attacker.draws("adaptive"),
            price=price(defended, 1),
        )


def successes_of(records: Sequence[AttackRecord]) -> dict[Knowledge, bool]:
    """Whether any attack of a knowledge succeeded, for those that were run."""
    successes: dict[Knowledge, bool] = {}
    for record in records:
        successes[record.knowledge] = (
            successes.get(record.knowledge, False) or record.success or record.success_8bit
        )
    return successes


def queried_in(records: Sequence[AttackRecord], ball: BallSpec) -> bool | None:
    """Whether Square succeeded at the end of an ensemble in that ball, after all gradient attacks had failed;
    None: it was not reached.
    """
    wanted = ball.model_dump(mode="json")
    stages = [
        stage.broken
        for record in records
        if record.params["ball"] == wanted
        for stage in record.stages
        if stage.name == "square"
    ]
    return any(stages) if stages else None
