"""What an attacked decision is put to afterwards: the masking checks and, where nothing broke it, the
self-test. The suspect is the attack.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from robustclip.attacks.events import Meter
from robustclip.models.classifier import Defended
from robustclip.probing.attacker import Attacker
from robustclip.probing.options import ProbeOptions, boundless, claimed_ball
from robustclip.reports.report import AttackRecord, Knowledge
from robustclip.sanity import checks
from robustclip.sanity.base import Finding
from robustclip.sanity.checks import Suspect
from robustclip.sanity.gradients import Climb
from robustclip.sanity.selftest import SelfTest, self_test
from robustclip.threat import BallSpec
from robustclip.types import Pixels, Seeds, price


@dataclass(frozen=True, eq=False)
class Examination:
    """One picture [1, 3, S, S] that was attacked, the decision about it in torch, and who pays for the
    checks.
    """

    attacker: Attacker
    defended: Defended
    pixels: Pixels
    seeds: Seeds
    options: ProbeOptions
    meter: Meter

    def findings(self, records: Sequence[AttackRecord], climb: Climb | None) -> Iterator[Finding]:
        """One after the other, each paid for before the next: what `records` make worth asking. `climb`: how
        the attack in the claimed ball went.
        """
        suspect, successes = self._suspect(), successes_of(records)
        unbounded, queried = boundless(suspect.ball, self.pixels.shape[-1]), queried_in(records, suspect.ball)
        for finding in checks.examine(
            suspect, dict[str, bool](successes.items()), unbounded=unbounded, queried=queried, climb=climb
        ):
            self.meter.pay(finding.cost)
            yield finding

    def self_test(self, records: Sequence[AttackRecord]) -> SelfTest | None:
        """What the attack makes of problems that have an answer; None where it was not asked for, or nothing
        is left to explain.
        """
        suspect, successes = self._suspect(), successes_of(records)
        standing = successes.get("adaptive") is False and not successes.get("black_box", False)
        if not standing or not self.options.tests_itself or suspect.gradient == "none":
            return None
        outcome, cost = self_test(
            self.defended.features,
            self.pixels,
            self.seeds,
            suspect.ball,
            eot=suspect.eot,
            toll=self.defended.toll,
            guard=self.attacker.guard,
            share=self.attacker.share,
        )
        self.meter.pay(cost)
        return outcome

    def _suspect(self) -> Suspect:
        victim, defense = self.attacker.victim, self.defended.defense
        return Suspect(
            score=self.attacker.score("adaptive", self.pixels, self.seeds),
            undefended=self.attacker.score("static", self.pixels, self.seeds) if victim.defense else None,
            classifier=self.attacker.share(self.defended),
            pixels=self.pixels,
            seeds=self.seeds,
            ball=claimed_ball(self.options),
            gradient=defense.gradient,
            randomized=defense.randomized,
            eot=self.attacker.draws("adaptive"),
            price=price(self.defended, 1),
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
    """What Square came to at the end of an ensemble in that ball, after all gradients had failed; None: it
    was not reached.
    """
    asked = ball.model_dump(mode="json")
    stages = [
        stage.broken
        for record in records
        if record.params["ball"] == asked
        for stage in record.stages
        if stage.name == "square"
    ]
    return any(stages) if stages else None
