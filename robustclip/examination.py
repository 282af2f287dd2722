"""What an attacked decision is put to afterwards: the masking checks and, where nothing broke it, the self-test. The suspect is the attack."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from robustclip import sanity
from robustclip.attacker import Attacker
from robustclip.attacks.events import Meter
from robustclip.classifier import Defended
from robustclip.probe_options import ProbeOptions, boundless
from robustclip.report import Knowledge
from robustclip.sanity import Diagnostic, Suspect
from robustclip.sanity.selftest import SelfTest, self_test
from robustclip.types import Pixels, Seeds, Toll, price


@dataclass(frozen=True, eq=False)
class Examination:
    """One picture [1, 3, S, S] that was attacked, the decision about it in torch, and who pays for the checks."""

    attacker: Attacker
    defended: Defended
    pixels: Pixels
    seeds: Seeds
    options: ProbeOptions
    meter: Meter

    def findings(self, successes: Mapping[Knowledge, bool]) -> Iterator[Diagnostic | SelfTest]:
        """One after the other, each paid for before the next. `successes`: whether attacks of a knowledge succeeded, for those that were run."""
        suspect = self._suspect()
        unbounded = boundless(suspect.ball, self.pixels.shape[-1])
        for diagnostic, cost in sanity.examine(suspect, dict[str, bool](successes.items()), unbounded=unbounded):
            self.meter.pay(cost)
            yield diagnostic
        standing = "adaptive" in successes and not successes["adaptive"]
        if standing and self.options.tests_itself and suspect.gradient != "none":
            yield from self._self_test(suspect)

    def _self_test(self, suspect: Suspect) -> Iterator[Diagnostic | SelfTest]:
        outcome, cost = self_test(
            self.defended.features,
            self.pixels,
            self.seeds,
            suspect.ball,
            eot=suspect.eot,
            toll=Toll.of([self.defended]),
            guard=self.attacker.guard,
            share=self.attacker.share,
        )
        self.meter.pay(cost)
        yield outcome
        if (diagnostic := outcome.diagnostic()) is not None:
            yield diagnostic

    def _suspect(self) -> Suspect:
        """What was attacked, in the largest ball of those in the first attack's norm: the claim that has to hold."""
        first = self.options.attacks[0].ball
        balls = [attack.ball for attack in self.options.attacks if attack.ball.kind == first.kind]
        victim, defense = self.attacker.victim, self.defended.defense
        return Suspect(
            score=self.attacker.score("adaptive", self.pixels, self.seeds),
            undefended=self.attacker.score("static", self.pixels, self.seeds) if victim.defense else None,
            classifier=self.attacker.share(self.defended),
            pixels=self.pixels,
            seeds=self.seeds,
            ball=max(balls, key=lambda ball: ball.radius),
            gradient=defense.gradient,
            randomized=defense.randomized,
            eot=self.attacker.draws("adaptive"),
            price=price(self.defended, 1),
        )
